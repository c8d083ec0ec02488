"""The teachers as data: the published ones, the shipped one, and the plain pixels.

Accuracies, licenses and links are as published by the authors. SimCLR takes pixels in [0, 1]
(normalizing them gives near-random embeddings); the others normalize by mean and standard
deviation. The embedding of a published network is the pooled last stage of a ResNet. Images are
resized, then center-cropped, by Pillow; the TensorFlow programs crop before they resize.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from distill.models.download import Source
from distill.models.layout import Layout, PyTorchLayout
from distill.models.libraries import library_spec
from distill.models.networks import InputSpec, NetworkSpec, Publication
from distill.registry import Registry
from teachers.resnet import build_resnet
from teachers.tensorflow_names import compressive_layout, projection_layout, simclr_layout

SHIPPED = Path(__file__).parent / "shipped"
NEEDS_NO_DOWNLOAD = "digits-cbyol"

TEACHERS: Registry[NetworkSpec] = Registry(
    "teacher",
    remedy="timm:NAME, torchvision:NAME, run directories and converted .safetensors files work too",
)


def teacher_spec(name: str) -> NetworkSpec:
    """Return the spec of a teacher; `UnknownNameError` if there is none."""
    return library_spec(name) or TEACHERS.get(name)


def register_published(
    name: str, publication: Publication, *, input: InputSpec, layout: Layout, summary: str
) -> NetworkSpec:
    """Register a published ResNet; TensorFlow's use TensorFlow's padding of the max-pool."""
    pool = "same" if layout.kind == "tensorflow" else "symmetric"
    build = partial(build_resnet, depth=publication.depth, width=publication.width, pool=pool)
    spec = NetworkSpec(
        name, build, input=input, layout=layout, publication=publication, summary=summary
    )
    TEACHERS.add(name, spec)
    return spec


# SimCLR v1
for _name, _width, _accuracy in (("r50", 1, 0.691), ("r50x2", 2, 0.742), ("r50x4", 4, 0.766)):
    _url = f"https://storage.googleapis.com/simclr-gcs/checkpoints/ResNet50_{_width}x.zip"
    register_published(
        _name,
        Publication(50, _width, _accuracy, "2002.05709", "Apache-2.0", Source(_url)),
        input=InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic"),
        layout=simclr_layout(50),
        summary="SimCLR v1, 1000 epochs",
    )

# Compressive Visual Representations: C-BYOL, BYOL, C-SimCLR
_COMPRESSIVE = "https://storage.googleapis.com/rl-infra-public/compressive-visual-representations"
_UNREACHABLE = "the link was reported unreachable in 2026"
_WRONG = "the authors' link for C-SimCLR leads to the SimCLR checkpoint, which is another network"
_HEAD_DIMS = (4096, 256)  # hidden and output width
for _name, _method, _depth, _width, _accuracy, _folder in (
    ("r50-c-byol", "C-BYOL", 50, 1, 0.758, "checkpoints/cbyol/resnet50/1000_epochs"),
    ("r50x2-c-byol", "C-BYOL", 50, 2, 0.789, "checkpoints_linear_eval/cbyol/resnet50-2x"),
    ("r101-c-byol", "C-BYOL", 101, 1, 0.778, "checkpoints_linear_eval/cbyol/resnet101"),
    ("r152-c-byol", "C-BYOL", 152, 1, 0.787, "checkpoints_linear_eval/cbyol/resnet152"),
    ("r50-byol", "BYOL", 50, 1, 0.743, "checkpoints_linear_eval/byol/resnet50"),
    ("r50x2-byol", "BYOL", 50, 2, 0.772, "checkpoints_linear_eval/byol/resnet50-2x"),
    ("r50-c-simclr", "C-SimCLR", 50, 1, 0.717, "checkpoints_linear_eval/simclr/resnet50"),
):
    _is_wrong = _method == "C-SimCLR"
    _source = Source(
        f"{_COMPRESSIVE}/{_folder}/checkpoint.tar.gz", caveat=_WRONG if _is_wrong else _UNREACHABLE
    )
    _spec = register_published(
        _name,
        Publication(_depth, _width, _accuracy, "2109.12909", "Apache-2.0", _source, not _is_wrong),
        input=InputSpec(interpolation="bicubic"),
        layout=compressive_layout(_depth),
        summary=f"{_method}, 1000 epochs",
    )
    # The file also has the projection head and the momentum copy.
    _head = replace(
        _spec,
        name=f"{_name}:projection",
        build=partial(build_resnet, depth=_depth, width=_width, pool="same", head_dims=_HEAD_DIMS),
        layout=projection_layout(_depth),
        summary=f"{_spec.summary}, through the projection head",
    )
    TEACHERS.add(_head.name, _head, listed=False)
    if not _is_wrong:  # SimCLR has no momentum copy
        _target = replace(
            _spec,
            name=f"{_name}:target",
            layout=compressive_layout(_depth, part="target_resnet"),
            summary=f"{_spec.summary}, the momentum copy",
        )
        TEACHERS.add(_target.name, _target, listed=False)

# SwAV
for _name, _width, _accuracy, _epochs, _file in (
    ("r50-swav", 1, 0.753, 800, "swav_800ep_pretrain.pth.tar"),
    ("r50w2-swav", 2, 0.773, 400, "swav_RN50w2_400ep_pretrain.pth.tar"),
    ("r50w4-swav", 4, 0.779, 400, "swav_RN50w4_400ep_pretrain.pth.tar"),
    ("r50w5-swav", 5, 0.785, 400, "swav_RN50w5_400ep_pretrain.pth.tar"),
):
    _source = Source(f"https://dl.fbaipublicfiles.com/deepcluster/{_file}")
    register_published(
        _name,
        Publication(50, _width, _accuracy, "2006.09882", "CC-BY-NC-4.0", _source),
        input=InputSpec(std=(0.228, 0.224, 0.225)),  # SwAV's own red deviation
        layout=PyTorchLayout(ignored=("projection_head.", "prototypes.")),
        summary=f"SwAV, {_epochs} epochs",
    )

# MoCo v2
_MOCO = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep"
_source = Source(f"{_MOCO}/moco_v2_800ep_pretrain.pth.tar", checksum="md5:a04e12f8")
register_published(
    "r50-mocov2",
    Publication(50, 1, 0.711, "2003.04297", "CC-BY-NC-4.0", _source),
    input=InputSpec(),
    layout=PyTorchLayout("encoder_q.", ignored=("fc.", "encoder_k.", "queue")),
    summary="MoCo v2, 800 epochs",
)

TEACHERS.add(
    NEEDS_NO_DOWNLOAD,
    NetworkSpec(
        name=NEEDS_NO_DOWNLOAD,
        build=partial(build_resnet, depth=18, width=0.25, stem="small"),
        input=InputSpec(image_size=16, crop_fraction=1.0),
        weights_file=SHIPPED / "digits-cbyol" / "backbone.safetensors",
        summary="C-BYOL ResNet-18 at 1/4 width, trained on scikit-learn's digits, shipped (3 MB)",
    ),
)

# A baseline for every teacher, and a way to try the pipeline without pretrained weights: its
# nearest-neighbor accuracy on digits is 98 %.
TEACHERS.add(
    "pixels",
    NetworkSpec(
        name="pixels",
        build=lambda image_size: nn.Identity(),
        input=InputSpec(image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0),
        summary="the image itself at 8 x 8 pixels: no weights needed, for trying things out",
    ),
)

# Other common names, after the papers and the files.
for _alias, _name in {
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
}.items():
    TEACHERS.add(_alias, TEACHERS.get(_name), listed=False)
