"""Recipes: defaults of the options by name, as YAML beside this file or given as a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.config import TrainConfig
from distill.errors import UnknownNameError
from distill.options import read_yaml, updated

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the recipes that are shipped."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> TrainConfig:
    """Return the configuration that the recipe `name` (or the YAML file `name`) gives.

    Raises:
        DistillError: Unknown recipe, unreadable file, unknown option or value of the wrong type.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_file else _FOLDER / f"{name}.yaml"
    if not is_file and not path.exists():
        raise UnknownNameError("recipe", name, recipe_names(), "or give the path of a .yaml file")
    config = updated(TrainConfig(), read_yaml(path, kind="recipe"), source=f"recipe {name}")
    return replace(config, run=replace(config.run, recipe=name))
