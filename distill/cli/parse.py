"""Short tables for people; programs read metrics.json.

What all subcommands share in reading their flags (tyro does the work).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one number a line, by name."""
    print_table([(name, _shown(value)) for name, value in metrics.items()])


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print left-aligned columns."""
    everything = [*([header] if header else []), *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(everything[0]))]
    for row in everything:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


Command = TypeVar("Command")
_NUMBERS: dict[type, tuple[str, str]] = {
    int: ("INT", "a whole number, such as 10"),
    float: ("FLOAT", "a number, such as 0.1 or 1e-4"),
}
_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read numbers, `None` too where it is allowed; tyro's own words list every type it tried."""
    is_union = info.type_origin in (Union, UnionType)
    types = {
        one.__origin__ if get_origin(one) is Annotated else one
        for one in (get_args(info.type) if is_union else (info.type,))
    }
    is_optional = type(None) in types
    (kind, *others) = types - {type(None)} or {None}
    if others or kind not in _NUMBERS:
        return None
    metavar, words = _NUMBERS[kind]

    def read(arguments: list[str]) -> Any:
        (text,) = arguments
        if is_optional and text == "None":
            return None
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {words}{', or None' * is_optional}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{metavar}" if is_optional else metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (int, *types)),  # whole numbers are numbers
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    command: type[Command],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    default: Command | None = None,
) -> Command:
    """Read flags into a frozen dataclass; its groups do not prefix them.

    Exits with status 2 and a message that names the flag when one is unknown or of the wrong type.

    Args:
        command: The dataclass.
        argv: Arguments after the subcommand.
        prog: Shown in the usage line.
        description: Shown at the top of the help, worked examples included.
        default: Values that flags override; None takes the dataclass's own.
    """
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(
        command,
        args=argv,
        prog=prog,
        description=description,
        default=tyro.MISSING_NONPROP if default is None else default,
        config=config,
        registry=_REGISTRY,
    )


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag that must be known before the others; None without it."""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
    return None


def given_options(argv: Sequence[str]) -> list[str]:
    """Return the names of all flags, as the options they set: `batch_size` for --batch-size 8."""
    flags = [argument[2:].partition("=")[0] for argument in argv if argument.startswith("--")]
    return [flag.replace("-", "_") for flag in flags]
