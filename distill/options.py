"""Options by name: the flat face of the configuration that flags, YAML and keywords share.

Unknown names and values of the wrong type are refused, with the nearest name or what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from distill.errors import DistillError, nearest_match
from distill.parsing import read_yaml_file, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config")  # a frozen dataclass whose fields are groups of options
Group = TypeVar("Group", bound="DataclassInstance")  # one whose fields are options


def option_names(config_type: type) -> list[str]:
    """Return the name of every option of a configuration, in the order of the help."""
    return [name for hints in _groups(config_type).values() for name in hints]


def updated(config: Config, options: Mapping[str, Any], *, source: str) -> Config:
    """Return `config` with `options` (flat: name -> value) replaced.

    Args:
        config: The configuration to start from.
        options: Values by option name; hyphens and underscores are the same. Lists become tuples
            and strings become paths where the option is one.
        source: Where the options come from, for the error message.

    Raises:
        DistillError: For an unknown name (with the nearest) or a value of the wrong type.
    """
    values = _known(options, option_names(type(config)), source)
    groups = {}
    for group, hints in _groups(type(config)).items():
        mine = {n: _coerced(n, v, hints[n], source) for n, v in values.items() if n in hints}
        groups[group] = dataclasses.replace(getattr(config, group), **mine)
    return type(config)(**groups)


def as_options(group: type[Group], options: Mapping[str, Any], *, source: str) -> Group:
    """Return a dataclass of options with `options` as in `updated` and its own defaults.

    Raises:
        DistillError: For an unknown name, a value of the wrong type, or a missing option.
    """
    hints = get_type_hints(group)
    values = {
        name: _coerced(name, value, hints[name], source)
        for name, value in _known(options, list(hints), source).items()
    }
    needed = [one.name for one in fields(group) if _has_no_default(one)]
    missing = [name for name in needed if name not in values]
    if missing:
        raise DistillError(f"{source} needs {' and '.join(missing)}")
    return group(**values)


def flattened(config: Any) -> dict[str, Any]:
    """Return every option by name as plain YAML values (paths as strings, tuples as lists)."""
    flat: dict[str, Any] = {}
    for group in fields(config):
        for name, value in vars(getattr(config, group.name)).items():
            plain = str(value) if isinstance(value, Path) else value
            flat[name] = list(plain) if isinstance(plain, tuple) else plain
    return flat


def to_yaml(config: Any) -> str:
    """Return the configuration as flat YAML, in the order of the help."""
    return yaml.safe_dump(flattened(config), sort_keys=False)


def read_yaml(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        DistillError: When the file is missing, not YAML, or not a mapping.
    """
    try:
        content = read_yaml_file(path)
    except FileNotFoundError as error:
        raise DistillError(
            f"{kind} {path} cannot be read: there is no such file; name a YAML file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(f"{kind} {path} cannot be read: {error}") from error
    except ValueError as error:
        raise DistillError(f"{kind} {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DistillError(f"{kind} {path} must be a mapping of option names to values")
    return content


def _known(options: Mapping[str, Any], known: list[str], source: str) -> dict[str, Any]:
    """Return options by name, with underscores; refuse an unknown one with the nearest."""
    values = {name.replace("-", "_"): value for name, value in options.items()}
    unknown = [name for name in values if name not in known]
    if unknown:
        nearest = nearest_match(unknown[0], known)
        hint = f"; did you mean {nearest!r}?" if nearest else "; the command's --help lists them"
        raise DistillError(f"{source} has an unknown option {shown(unknown[0])}{hint}")
    return values


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _groups(config_type: type) -> dict[str, dict[str, Any]]:
    """Return the options of every group with their types."""
    return {name: get_type_hints(group) for name, group in get_type_hints(config_type).items()}


def _coerced(name: str, value: Any, hint: Any, source: str) -> Any:
    """Convert a YAML or keyword value to the option's type, refusing what does not fit."""
    alternatives = get_args(hint) if _is_union(hint) else (hint,)
    for alternative in alternatives:
        converted = _as_type(value, alternative)
        if converted is not _NO_FIT:
            return converted
    allowed = ", ".join(described for a in alternatives for described in _described(a))
    raise DistillError(f"{source} gives {name} the value {shown(value)}; allowed: {allowed}")


_NO_FIT = object()


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is not None and get_origin(hint) not in (Literal, tuple)


def _as_type(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else _NO_FIT
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            return _NO_FIT
        items = tuple(_as_type(item, get_args(hint)[0]) for item in value)
        return _NO_FIT if _NO_FIT in items else items
    if hint is Path:
        return Path(value).expanduser() if isinstance(value, (str, Path)) else _NO_FIT
    if hint is float:
        return _as_float(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    return value if type(value) is hint else _NO_FIT


def _as_float(value: Any) -> Any:
    """Accept numbers and, since YAML 1.1 reads 1e-3 as text, text that is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _NO_FIT
    try:
        return float(value)
    except (ValueError, OverflowError):
        return _NO_FIT


def _described(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) is tuple:
        names = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}
        return [f"a list of {names[get_args(hint)[0]]}"]
    names = {Path: "a path", type(None): "null", int: "a whole number", float: "a number"}
    return [names.get(hint, hint.__name__)]
