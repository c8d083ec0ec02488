"""Teachers by name: registry entries, `timm:NAME`, `torchvision:NAME`, or a run directory.

A teacher is frozen for good: evaluation mode that `train()` does not leave, no gradient, never
handed to an optimizer and never written to a checkpoint.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.errors import DistillError
from distill.libraries import library_spec
from distill.networks import EmbeddingNetwork, InputSpec, NetworkSpec, build_network
from distill.registry import Registry
from distill.weights import load_weights
from students.resnet import build_resnet
from teachers.backbones import build_resnet_of
from teachers.frozen import freeze
from teachers.pixels import build_pixels
from teachers.trained import has_trained, load_trained

TEACHERS: Registry[NetworkSpec] = Registry(
    "teacher", remedy="timm:NAME, torchvision:NAME and run directories work too"
)

SHIPPED = Path(__file__).parent / "shipped"
_resnet50 = partial(build_resnet, name="resnet50")

for _spec in (
    NetworkSpec(
        name="r50-mocov2",
        build=_resnet50,
        head_keys=("fc.",),
        weights_prefix="encoder_q.",
        skipped_keys=("encoder_k.", "queue"),
        weights_url=(
            "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/"
            "moco_v2_800ep_pretrain.pth.tar"
        ),
        summary="MoCo v2 ResNet-50, 800 epochs (He et al., 2020); linear accuracy 71.1 %",
    ),
    NetworkSpec(
        name="r50-swav",
        build=_resnet50,
        input=InputSpec(std=(0.228, 0.224, 0.225)),  # SwAV's own red deviation
        skipped_keys=("projection_head.", "prototypes."),
        weights_url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        summary="SwAV ResNet-50, 800 epochs (Caron et al., 2020); linear accuracy 75.3 %",
    ),
    NetworkSpec(
        name="digits-cbyol",
        build=partial(build_resnet_of, depth=18, width=0.25, stem="small"),
        input=InputSpec(image_size=16, crop_fraction=1.0),
        weights_file=SHIPPED / "digits-cbyol" / "backbone.safetensors",
        summary="C-BYOL ResNet-18 at 1/4 width, trained on scikit-learn's digits, shipped (3 MB)",
    ),
    NetworkSpec(
        name="pixels",
        build=build_pixels,
        input=InputSpec(image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0),
        needs_weights=False,
        summary="the image itself at 8 x 8 pixels: no weights needed, for trying things out",
    ),
):
    TEACHERS.add(_spec.name, _spec)


def load_teacher(
    name: str, *, weights: Path | None = None, image_size: int | None = None
) -> EmbeddingNetwork:
    """Load a frozen teacher.

    Args:
        name: A registry name, `timm:NAME`, `torchvision:NAME` or a run directory.
        weights: File to read instead of the teacher's own source.
        image_size: Side of its input in pixels; None takes the side it was trained with.

    Returns:
        The frozen network, on the CPU.

    Raises:
        DistillError: Unknown name, weights that are missing or do not fit, an unusable image side.
    """
    if has_trained(Path(name)):
        return freeze(_from_run(Path(name), weights, image_size))
    spec = library_spec(name) or TEACHERS.get(name)
    found = weights or spec.weights_file or spec.pretrained
    if spec.needs_weights and found is None:
        raise DistillError(
            f"the weights of {name} must be given: download {spec.weights_url} and pass "
            "--teacher-weights FILE"
        )
    network = build_network(spec, image_size=image_size)
    file = weights or spec.weights_file
    if file is not None:
        load_weights(network, file)
    elif spec.pretrained is not None:
        spec.pretrained(network.backbone)
    return freeze(network)


def _from_run(run: Path, weights: Path | None, image_size: int | None) -> EmbeddingNetwork:
    if weights is not None or image_size is not None:
        raise DistillError(
            f"{run} is a run directory and brings its own weights and image size; leave out "
            "--teacher-weights and --teacher-image-size"
        )
    return load_trained(run)
