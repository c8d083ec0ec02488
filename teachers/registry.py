"""A teacher without weights: the embedding is the image itself, shrunk.

It serves to try the whole pipeline where no pretrained network is at hand (on digits its nearest
neighbors are right 98 times in 100) and as a floor that any real teacher must beat.

Published teachers as data: what they are, where their files lie and what they want to see.

Accuracies, licenses and links are those that the authors state. SimCLR sees pixels in [0, 1] as
they are (normalizing them gives near-random embeddings); the others subtract mean and deviation.
All networks embed into the pooled last stage of a ResNet. Preprocessing is resize, then center
crop, by Pillow; the TensorFlow programs crop before they resize, by TensorFlow.

Teachers by name, as data: published ones, the shipped one, and the bare pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from distill.models.download import Source
from distill.models.layout import Layout, PyTorchLayout
from distill.models.libraries import library_spec
from distill.models.networks import InputSpec, NetworkSpec, Publication
from distill.registry import Registry
from teachers.heads import mlp_head
from teachers.resnet import ResNet, build_resnet_of
from teachers.tensorflow_names import compressive_layout, projection_layout, simclr_layout


def build_pixels(image_size: int) -> nn.Module:
    """Return the identity: B x 3 x S x S pixels in, the same out, flattened by the caller."""
    return nn.Identity()


_SIMCLR = "https://storage.googleapis.com/simclr-gcs/checkpoints"
_COMPRESSIVE = "https://storage.googleapis.com/rl-infra-public/compressive-visual-representations"
_SWAV = "https://dl.fbaipublicfiles.com/deepcluster"
_MOCO = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints"

_AS_THEY_ARE = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic")
_BICUBIC = InputSpec(interpolation="bicubic")
_SWAV_INPUT = InputSpec(std=(0.228, 0.224, 0.225))  # SwAV's own red deviation

_COMPRESSIVE_PAPER = "2109.12909"
_HEAD_DIMS = (4096, 256)  # hidden and output width
_UNREACHABLE = "the link was reported unreachable in 2026"
_WRONG = "the authors' link for C-SimCLR leads to the SimCLR checkpoint, which is another network"

# Other names that people type, each after its paper or its file.
ALIASES = {
    "simclr-r50": "r50",
    "simclr-r50x2": "r50x2",
    "simclr-r50x4": "r50x4",
    "resnet50x2": "r50x2",
    "resnet50x4": "r50x4",
    "resnet50-4x": "r50x4",
    "c-byol-r50": "r50-c-byol",
    "cbyol-r50": "r50-c-byol",
    "r50-cbyol": "r50-c-byol",
    "c-simclr-r50": "r50-c-simclr",
    "swav": "r50-swav",
    "swav-r50": "r50-swav",
    "moco-v2": "r50-mocov2",
    "mocov2-r50": "r50-mocov2",
}


def published_specs() -> Iterator[NetworkSpec]:
    """Yield the description of every published teacher, without the other parts of its file."""
    for name, width, accuracy in (("r50", 1, 0.691), ("r50x2", 2, 0.742), ("r50x4", 4, 0.766)):
        yield _described(
            name,
            Publication(
                depth=50,
                width=width,
                linear_accuracy=accuracy,
                paper="2002.05709",
                license="Apache-2.0",
                source=Source(f"{_SIMCLR}/ResNet50_{width}x.zip"),
            ),
            input=_AS_THEY_ARE,
            layout=simclr_layout(50),
            summary="SimCLR v1, 1000 epochs",
        )
    yield from _compressive_specs()
    for name, width, accuracy, epochs, file in (
        ("r50-swav", 1, 0.753, 800, "swav_800ep_pretrain.pth.tar"),
        ("r50w2-swav", 2, 0.773, 400, "swav_RN50w2_400ep_pretrain.pth.tar"),
        ("r50w4-swav", 4, 0.779, 400, "swav_RN50w4_400ep_pretrain.pth.tar"),
        ("r50w5-swav", 5, 0.785, 400, "swav_RN50w5_400ep_pretrain.pth.tar"),
    ):
        yield _described(
            name,
            Publication(
                depth=50,
                width=width,
                linear_accuracy=accuracy,
                paper="2006.09882",
                license="CC-BY-NC-4.0",
                source=Source(f"{_SWAV}/{file}"),
            ),
            input=_SWAV_INPUT,
            layout=PyTorchLayout(ignored=("projection_head.", "prototypes.")),
            summary=f"SwAV, {epochs} epochs",
        )
    yield _described(
        "r50-mocov2",
        Publication(
            depth=50,
            width=1,
            linear_accuracy=0.711,
            paper="2003.04297",
            license="CC-BY-NC-4.0",
            source=Source(
                f"{_MOCO}/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", checksum="md5:a04e12f8"
            ),
        ),
        input=InputSpec(),
        layout=PyTorchLayout("encoder_q.", ignored=("fc.", "encoder_k.", "queue")),
        summary="MoCo v2, 800 epochs",
    )


def parts_of(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    """Yield what else a published file holds: `NAME:projection` and `NAME:target`.

    The former is the backbone followed by its projection head, the latter its momentum copy.
    """
    published = spec.publication
    if published is None or published.paper != _COMPRESSIVE_PAPER:
        return
    yield replace(
        spec,
        name=f"{spec.name}:projection",
        build=partial(
            build_published,
            depth=published.depth,
            width=published.width,
            head_dims=_HEAD_DIMS,
        ),
        layout=projection_layout(published.depth),
        summary=f"{spec.summary}, through the projection head",
    )
    if "BYOL" in spec.summary:  # SimCLR has no momentum copy
        yield replace(
            spec,
            name=f"{spec.name}:target",
            layout=compressive_layout(published.depth, part="target_resnet"),
            summary=f"{spec.summary}, the momentum copy",
        )


def build_published(
    image_size: int,
    *,
    depth: int,
    width: float,
    pool: str = "same",
    head_dims: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a published ResNet with random weights.

    Args:
        image_size: Decides nothing.
        depth: Layers.
        width: Factor of every stage's width.
        pool: Padding of the stem's max-pool, see `ResNet`.
        head_dims: Hidden and output width of a projection head to put behind it; None: no head.
    """
    backbone = ResNet(depth, width=width, pool=pool)
    if head_dims is None:
        return backbone
    head = mlp_head(backbone.embedding_dim, *head_dims)
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def _compressive_specs() -> Iterator[NetworkSpec]:
    for name, method, depth, width, accuracy, folder in (
        ("r50-c-byol", "C-BYOL", 50, 1, 0.758, "checkpoints/cbyol/resnet50/1000_epochs"),
        ("r50x2-c-byol", "C-BYOL", 50, 2, 0.789, "checkpoints_linear_eval/cbyol/resnet50-2x"),
        ("r101-c-byol", "C-BYOL", 101, 1, 0.778, "checkpoints_linear_eval/cbyol/resnet101"),
        ("r152-c-byol", "C-BYOL", 152, 1, 0.787, "checkpoints_linear_eval/cbyol/resnet152"),
        ("r50-byol", "BYOL", 50, 1, 0.743, "checkpoints_linear_eval/byol/resnet50"),
        ("r50x2-byol", "BYOL", 50, 2, 0.772, "checkpoints_linear_eval/byol/resnet50-2x"),
        ("r50-c-simclr", "C-SimCLR", 50, 1, 0.717, "checkpoints_linear_eval/simclr/resnet50"),
    ):
        is_wrong = method == "C-SimCLR"
        yield _described(
            name,
            Publication(
                depth=depth,
                width=width,
                linear_accuracy=accuracy,
                paper=_COMPRESSIVE_PAPER,
                license="Apache-2.0",
                source=Source(
                    f"{_COMPRESSIVE}/{folder}/checkpoint.tar.gz",
                    caveat=_WRONG if is_wrong else _UNREACHABLE,
                ),
                is_fetchable=not is_wrong,
            ),
            input=_BICUBIC,
            layout=compressive_layout(depth),
            summary=f"{method}, 1000 epochs",
        )


def _described(
    name: str, publication: Publication, *, layout: Layout, **description: Any
) -> NetworkSpec:
    """Describe a published network; TensorFlow's are padded as TensorFlow pads."""
    pool = "same" if layout.kind == "tensorflow" else "symmetric"
    build = partial(build_published, depth=publication.depth, width=publication.width, pool=pool)
    return NetworkSpec(
        name=name, build=build, layout=layout, publication=publication, **description
    )


SHIPPED = Path(__file__).parent / "shipped"
NEEDS_NO_DOWNLOAD = "digits-cbyol"

TEACHERS: Registry[NetworkSpec] = Registry(
    "teacher",
    remedy="timm:NAME, torchvision:NAME, run directories and converted .safetensors files work too",
)
for _spec in (
    *published_specs(),
    NetworkSpec(
        name=NEEDS_NO_DOWNLOAD,
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
    for _part in parts_of(_spec):
        TEACHERS.add(_part.name, _part, listed=False)
for _alias, _name in ALIASES.items():
    TEACHERS.add(_alias, TEACHERS.get(_name), listed=False)


def teacher_spec(name: str) -> NetworkSpec:
    """Describe the teacher called `name`.

    Raises:
        UnknownNameError: When neither the registry, timm nor torchvision knows it.
    """
    return library_spec(name) or TEACHERS.get(name)
