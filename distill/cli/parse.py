"""Short tables for people; programs read metrics.json.

What all subcommands share in reading their flags (tyro does the work).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from distill.cli.command import (  # noqa: F401
    flag_values,
    given_options,
    print_metrics,
    print_table,
)

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
