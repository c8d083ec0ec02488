"""`distill list`: what can be asked for by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from distill.cli.parse import parse

_EXAMPLES = """List what can be asked for by name.

examples:
  distill list
  distill list teachers
"""


@dataclass(frozen=True)
class ListCommand:
    """The arguments of `distill list`."""

    what: tyro.conf.Positional[Literal["all", "teachers", "students", "datasets", "recipes"]] = (
        "all"
    )
    """What to list."""


def run(argv: list[str]) -> int:
    """Run `distill list`; return the exit status."""
    what = parse(ListCommand, argv, prog="distill list", description=_EXAMPLES).what
    sections = {
        "teachers": _teachers,
        "students": _students,
        "datasets": _datasets,
        "recipes": _recipes,
    }
    for name, rows in sections.items():
        if what in ("all", name):
            _print_section(name, rows())
    return 0


def _print_section(title: str, rows: list[tuple[str, str]]) -> None:
    from distill.cli.table import print_table

    print(title)
    print_table([(f"  {name}", summary) for name, summary in rows])


def _teachers() -> list[tuple[str, str]]:
    from teachers import TEACHERS

    return [
        *((name, spec.summary) for name, spec in TEACHERS.items()),
        *_LIBRARIES,
        ("RUN", "a run directory: its student or its pre-trained backbone"),
    ]


def _students() -> list[tuple[str, str]]:
    from students import STUDENTS

    return [*((name, spec.summary) for name, spec in STUDENTS.items()), *_LIBRARIES]


def _datasets() -> list[tuple[str, str]]:
    return [
        ("digits", "1,797 images of 8 x 8 pixels, shipped with scikit-learn"),
        ("CIFAR10, CIFAR100, STL10", "fetched by torchvision on first use"),
        ("ImageNet", "train/ and val/ class folders under $DISTILL_DATA_ROOT/ImageNet"),
        ("FOLDER", "train/ and val/ class folders, or unlabelled images at any depth"),
    ]


def _recipes() -> list[tuple[str, str]]:
    from distill.recipes import CONFIGS, recipe_names

    return [
        (f"{command} {name}", _RECIPES.get(f"{command} {name}", ""))
        for command in CONFIGS
        for name in recipe_names(command)
    ]


_LIBRARIES = [
    ("timm:NAME", "any timm model (needs: pip install timm)"),
    ("torchvision:NAME", "any torchvision classifier"),
]
_RECIPES = {
    "train default": "what is not given follows the data",
    "train published": "CompRess, NeurIPS 2020, literally",
    "pretrain digits-cbyol": "the shipped teacher digits-cbyol",
    "pretrain default": "what is not given follows method and data",
    "pretrain published-300": "Compressive Visual Representations, NeurIPS 2021, 300 epochs",
    "pretrain published-1000": "the same, 1000 epochs",
}
