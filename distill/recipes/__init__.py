"""Recipes: defaults of a command's options by name, as YAML in its folder or given as a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config import read_yaml
from distill.errors import UnknownNameError

_FOLDER = Path(__file__).parent


def recipe_names(command: str) -> list[str]:
    """Return the names of the recipes that are shipped for `train` or `pretrain`."""
    return sorted(path.stem for path in (_FOLDER / command).glob("*.yaml"))


def read_recipe(name: str, command: str = "train") -> dict[str, Any]:
    """Return the options that the recipe `name` (or the YAML file `name`) gives a command.

    Raises:
        DistillError: Unknown recipe, or a file that cannot be read.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_file else _FOLDER / command / f"{name}.yaml"
    if not is_file and not path.exists():
        raise UnknownNameError(
            "recipe", name, recipe_names(command), "or give the path of a .yaml file"
        )
    return read_yaml(path, kind="recipe")
