"""Recipes: defaults of a command's options by name, as YAML in its folder or given as a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.config import PretrainConfig, TrainConfig, read_yaml, updated
from distill.errors import UnknownNameError

_FOLDER = Path(__file__).parent
CONFIGS: dict[str, type[Any]] = {"train": TrainConfig, "pretrain": PretrainConfig}


def recipe_names(command: str) -> list[str]:
    """Return the names of the recipes that are shipped for `train` or `pretrain`."""
    return sorted(path.stem for path in (_FOLDER / command).glob("*.yaml"))


def load_recipe(name: str, command: str = "train") -> Any:
    """Return the configuration that the recipe `name` (or the YAML file `name`) gives a command.

    Raises:
        DistillError: Unknown recipe, unreadable file, unknown option or value of the wrong type.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_file else _FOLDER / command / f"{name}.yaml"
    if not is_file and not path.exists():
        raise UnknownNameError(
            "recipe", name, recipe_names(command), "or give the path of a .yaml file"
        )
    options = read_yaml(path, kind="recipe")
    config = updated(CONFIGS[command](), options, source=f"recipe {name}")
    return replace(config, run=replace(config.run, recipe=name))
