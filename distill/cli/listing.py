"""`distill list`: what can be asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill.cli.command import Positional, command, parse, print_table

_SECTIONS = Literal["all", "teachers", "students", "methods", "datasets", "recipes"]


@command("list", "list teachers, students, methods, datasets, recipes")
def list_names(argv: Sequence[str]) -> int:
    """List what can be asked for by name.

    Examples:
      distill list
      distill list teachers
    """
    what = parse("list", argv, what=Positional(_SECTIONS, "What to list.", "all")).what
    sections = {
        "teachers": _teachers,
        "students": _students,
        "methods": _methods,
        "datasets": _datasets,
        "recipes": _recipes,
    }
    for name, rows in sections.items():
        if what in ("all", name):
            if name == "teachers":
                _print_published()
            print(name)
            print_table([(f"  {one}", summary) for one, summary in rows()])
    return 0


def _print_published() -> None:
    """Print what is known about the published teachers, and what is wrong with their links."""
    from teachers.registry import TEACHERS

    known = [(name, spec, spec.publication) for name, spec in TEACHERS.items()]
    rows: list[tuple[str, ...]] = []
    caveats: dict[str, list[str]] = {}
    for name, spec, published in known:
        if published is None:
            continue
        rows.append(
            (
                f"  {name}",
                spec.summary,
                f"ResNet-{published.depth} {published.width:g}x",
                f"{published.embedding_dim:,}",
                f"{100 * published.linear_accuracy:.1f} %",
                published.license,
                f"arxiv.org/abs/{published.paper}",
            )
        )
        if published.source.caveat:
            caveats.setdefault(published.source.caveat, []).append(name)
    print("published teachers (fetched on first use; linear: top-1 accuracy on ImageNet)")
    header = ("  name", "trained by", "network", "width", "linear", "license", "paper")
    print_table(rows, header)
    for caveat, names in caveats.items():
        print(f"  {', '.join(names)}: {caveat}")


def _teachers() -> list[tuple[str, str]]:
    from teachers.registry import TEACHERS

    return [
        *((name, spec.summary) for name, spec in TEACHERS.items() if spec.publication is None),
        ("NAME:projection", "of r50-c-byol and its kin: through the projection head, 256 wide"),
        ("NAME:target", "of r50-c-byol and its kin: the momentum copy"),
        *_LIBRARIES,
        ("RUN", "a run directory: its student or its pre-trained backbone"),
        ("FILE.safetensors", "what `distill convert` or a run wrote"),
    ]


def _students() -> list[tuple[str, str]]:
    from students.registry import STUDENTS

    return [*((name, spec.summary) for name, spec in STUDENTS.items()), *_LIBRARIES]


def _methods() -> list[tuple[str, str]]:
    from distill.losses import METHODS, load_plugins

    load_plugins()
    return sorted((name, loss.summary) for name, loss in METHODS.items())


def _datasets() -> list[tuple[str, str]]:
    return [
        ("digits", "1,797 images of 8 x 8 pixels, shipped with scikit-learn"),
        ("CIFAR10, CIFAR100, STL10", "fetched by torchvision on first use"),
        ("ImageNet", "train/ and val/ class folders under $DISTILL_DATA_ROOT/ImageNet"),
        ("FOLDER", "train/ and val/ class folders, or unlabeled images at any depth"),
    ]


def _recipes() -> list[tuple[str, str]]:
    from distill.recipes import recipe_names

    return [
        (f"{command} {name}", _RECIPES.get(f"{command} {name}", ""))
        for command in ("train", "pretrain")
        for name in recipe_names(command)
    ]


_LIBRARIES = [
    ("timm:NAME", "any timm model (needs: pip install timm)"),
    ("torchvision:NAME", "any torchvision classifier"),
]
_RECIPES = {
    "train default": "what is not given follows the data",
    "train published": "CompRess, NeurIPS 2020, literally",
    **{
        f"train {name}": f"--method {name}, published settings"
        for name in ("simreg", "seed", "clusterfit")
    },
    **{
        f"train {name}": f"--method {name} under CompRess's published schedule"
        for name in ("reg", "reg-bn", "cc", "cc-released", "crd", "rkd", "sp", "supervised")
    },
    "pretrain digits-cbyol": "the shipped teacher digits-cbyol",
    "pretrain default": "what is not given follows method and data",
    "pretrain published-300": "Compressive Visual Representations, NeurIPS 2021, 300 epochs",
    "pretrain published-1000": "the same, 1000 epochs",
}
