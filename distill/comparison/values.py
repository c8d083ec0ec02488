"""Values of a grid file: each is of the right kind, or refused in one sentence.

`where` and `source` say what to call the place in that sentence. All functions raise DistillError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from distill.errors import DistillError, nearest_match
from distill.parsing import shown


def named_options(value: Any, where: str) -> dict[str, Any]:
    """Return options by name; hyphens and underscores are the same, nothing is no option."""
    given = mapping(value, where)
    options = {str(name).replace("-", "_"): one for name, one in given.items()}
    if len(options) < len(given):
        raise DistillError(f"{where} gives an option twice, with hyphens and with underscores")
    return options


def mapping(value: Any, where: str) -> Mapping[Any, Any]:
    """Return a mapping; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DistillError(f"{where} is {shown(value)}; write a mapping, NAME: VALUE")
    return value


def names_of(given: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    """Return a list of distinct names, at least one."""
    value = given.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise needed(key, "a list of names such as [resnet18]", value, source)
    require_distinct(value, key, source)
    return tuple(value)


def needed(key: str, what: str, came: Any, source: str) -> DistillError:
    """Return the error of a key that is missing, or holds something else than it must."""
    return DistillError(f"{source} needs {key}, {what}; {_there(came)}")


def _there(came: Any) -> str:
    return "there is none" if came is None else f"it is {shown(came)}"


def seeds_of(value: Any, source: str) -> tuple[int, ...]:
    """Return a list of distinct whole numbers, at least one."""
    fits = isinstance(value, list) and value and all(type(one) is int for one in value)
    if not fits:
        raise DistillError(f"{source} has seeds {shown(value)}; give a list of whole numbers")
    require_distinct(value, "seeds", source)
    return tuple(value)


def number_of(given: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    """Return a positive number of a kind (int or float); None where there is none."""
    value = given.get(key)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if value is not None and not (fits and value > 0):
        raise DistillError(f"{source} has {key} {shown(value)}; give a positive number")
    return value


def flag_of(value: Any, key: str, source: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise DistillError(f"{source} has {key} {shown(value)}; give true or false")
    return value


def require_known(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse names that are not known, with the nearest that is."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        nearest = nearest_match(unknown, known)
        hint = f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(sorted(known))}"
        raise DistillError(f"{where} has an unknown option {shown(unknown)}: {hint}")


def require_distinct(values: list[Any], key: str, source: str) -> None:
    """Refuse a list that holds a value twice."""
    twice = next((one for one in values if values.count(one) > 1), None)
    if twice is not None:
        raise DistillError(f"{source} lists {shown(twice)} twice under {key}")


def refuse(options: Mapping[str, Any], names: Iterable[str], where: str, why: str) -> None:
    """Refuse options that have no place here, with the place that they have."""
    for name in names:
        if name in options:
            raise DistillError(f"{where} sets {name}: {why}")
