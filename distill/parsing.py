"""JSON and YAML that someone else may have written: plain values, or a ValueError.

What is nested so deeply that the parser gives up, and numbers and dates that are none, raise other
errors in the libraries. YAML is read by its safe loader, which makes plain values alone; an alias
may still stand for a list of lists of lists that no memory holds when it is written out, so values
are shown by `shown`. A text that parses may still say something else than its reader expects:
`checked` and `as_dataclass` look at the values, all the way down.
"""

from __future__ import annotations

import functools
import json
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MAX_BYTES = 4 * 2**20  # of a recipe, a grid or a run's configuration
MAX_DIGITS = 300  # of a whole number: more make no float

T = TypeVar("T")

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
        return json.loads(text, parse_int=_whole_number)
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
        return yaml.load(content.decode("utf-8"), _WithoutRepetition)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _WithoutRepetition(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML's own loader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look at a mapping as it is written, before `<<` brings what it may lie over."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def checked(value: Any, hint: Any) -> Any:
    """Return a value when it is of a type, such as `dict[str, list[float]]`, with all it holds.

    Raises:
        ValueError: It is not, naming the place.
    """
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(_explained(error)) from error


def as_dataclass(cls: type[T], content: Any) -> T:
    """Return a dataclass, and dataclasses and tuples in it, with the values of a JSON object.

    Raises:
        ValueError: It is no object, lacks a field, or has another one or one of another type.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cast(Any, cls)).validate_json(
            json.dumps(content), strict=True, extra="forbid"
        )
    except ValidationError as error:
        raise ValueError(_explained(error)) from error


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "unexpected_keyword_argument":
        return f"it has the unknown field {place}"
    return f"{place}: {first['msg'][:200]}" if place else first["msg"][:200]


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut short where it is long, wide or deep."""
    return _SHORT.repr(value)
