"""Files of a state: the tensors and plain values, in dicts and lists, of `state_dict` methods.

A safetensors file: tensors by name, and as its description a format number, what the writer says of
it and the structure that puts the state together, all under one checksum. Unlike with a pickle
nothing has to be run to read it. Tuples come back as lists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from distill.errors import DistillError

FORMAT = 2
_PLAIN = (bool, int, float, str, type(None))
_TENSOR, _DICT, _LIST = "tensor", "dict", "list"


def write_state(path: Path, state: Any, description: dict[str, Any]) -> None:
    """Write a state; the file is whole or as before.

    Args:
        path: The file.
        state: Tensors, dicts, lists, tuples, numbers, text and None.
        description: What JSON can hold, said beside it.

    Raises:
        OSError: The disk refuses.
        TypeError: There is something else in the state.
    """
    structure, tensors = _taken_apart(state)
    write_safetensors(path, tensors, {"format": FORMAT, **description, "state": structure})


def read_state(path: Path, *, verify: bool = True) -> tuple[dict[str, Any], Any]:
    """Return the description and the state, whose tensors are mapped from the file.

    Args:
        path: The file.
        verify: Read everything once and check it.

    Raises:
        DistillError: It is missing, damaged or of another format.
    """
    description, file = _opened(path, verify=verify)
    try:
        return description, _put_together(description.pop("state"), file.read)
    except (KeyError, ValueError, TypeError) as error:
        raise DistillError(f"checkpoint file {path} is damaged ({error})") from error


def read_description(path: Path) -> dict[str, Any]:
    """Return the description alone; nothing is checked.

    Raises:
        DistillError: The file is missing, not whole or of another format.
    """
    return _opened(path, verify=False)[0]


def _opened(path: Path, *, verify: bool) -> tuple[dict[str, Any], SafetensorsFile]:
    if not path.exists():
        raise DistillError(f"checkpoint file {path} is missing")
    try:
        file = SafetensorsFile(path, verify=verify)
    except DistillError as error:
        raise DistillError(f"checkpoint file {path} is damaged") from error
    content = file.description
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DistillError(
            f"checkpoint file {path} has format {found}, and this version of distill reads format "
            f"{FORMAT}"
        )
    return dict(content), file


def _taken_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the structure, which JSON can hold, and the tensors by the names it gives them.

    Raises:
        TypeError: Something else than tensors, dicts, lists, tuples, numbers, text and None.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            while name in tensors:  # keys may have dots
                name += "'"
            tensors[name] = value
            return {_TENSOR: name}
        if isinstance(value, dict):  # as pairs: JSON would make texts of numbers as keys
            pairs = [[key, visit(one, f"{name}.{key}")] for key, one in value.items()]
            return {_DICT: pairs}
        if isinstance(value, (list, tuple)):
            return {_LIST: [visit(one, f"{name}.{place}") for place, one in enumerate(value)]}
        if isinstance(value, _PLAIN):
            return value
        raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")

    return visit(state, "state"), tensors


def _put_together(structure: Any, read: Callable[[str], Tensor]) -> Any:
    """Return the state that was taken apart.

    Args:
        structure: As `_taken_apart` returned it.
        read: Returns a tensor by its name.

    Raises:
        ValueError: It is no such structure.
    """
    if not isinstance(structure, dict):
        return structure
    if len(structure) != 1 or not {_TENSOR, _DICT, _LIST}.issuperset(structure):
        raise ValueError(f"no state has an entry {list(structure)}")
    ((kind, content),) = structure.items()
    if kind == _TENSOR:
        return read(content)
    if kind == _LIST:
        return [_put_together(one, read) for one in content]
    return {key: _put_together(one, read) for key, one in content}
