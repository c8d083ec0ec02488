"""Teachers by name, as data: published ones, the shipped one, and the bare pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.libraries import library_spec
from distill.networks import InputSpec, NetworkSpec
from distill.registry import Registry
from teachers.backbones import build_resnet_of
from teachers.pixels import build_pixels
from teachers.published import ALIASES, parts_of, published_specs

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
