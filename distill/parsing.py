"""JSON and YAML that someone else may have written: plain values, or a ValueError.

What is nested so deeply that the parser gives up, and numbers and dates that are none, raise other
errors in the libraries. YAML is read by its safe loader, which makes plain values alone; an alias
may still stand for a list of lists of lists that no memory holds when it is written out, so values
are shown by `shown`.
"""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 4 * 2**20  # of a recipe, a grid or a run's configuration

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxdict = 8
_SHORT.maxlevel = 2


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml_file(path: Path) -> Any:
    """Return what a YAML file says.

    Raises:
        ValueError: It is no YAML, or larger than `MAX_BYTES`.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        return yaml.safe_load(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut short where it is long, wide or deep."""
    return _SHORT.repr(value)
