"""The adapter from dataclasses of options to a command of the command line; tyro does the parsing.

A command is a function of its arguments, registered by `command`; its docstring is its help, worked
examples included. It calls `parse` with the dataclasses whose fields are its flags:

    @command("report", "make a page about a run, or compare several")
    def report(argv: Sequence[str]) -> int:
        '''Write one HTML file about a run. ...'''
        given = parse("report", argv, runs=Positional(tuple[Path, ...], "..."), options=Options)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from distill.errors import DistillError


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        summary: One line for `distill --help`.
        run: Takes the arguments after the subcommand and returns the exit status.
        description: Heads its own help.
        is_shared: Whether several processes, started by torchrun, share its work.
    """

    summary: str
    run: Callable[[Sequence[str]], int]
    description: str
    is_shared: bool


COMMANDS: dict[str, Command] = {}


def command(
    name: str, summary: str, *, is_shared: bool = False
) -> Callable[[Callable[[Sequence[str]], int]], Callable[[Sequence[str]], int]]:
    """Register a function as a subcommand; see `Command`."""

    def register(run: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
        COMMANDS[name] = Command(summary, run, inspect.getdoc(run) or "", is_shared)
        return run

    return register


def require_one_process(name: str) -> None:
    """Refuse a command that several processes would only repeat.

    Raises:
        DistillError: torchrun started several.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise DistillError(f"`distill {name}` runs in one process; start it without torchrun")


class Positional(NamedTuple):
    """An argument without a flag; required unless it has a default."""

    type: Any
    help: str
    default: Any = MISSING


class Flag(NamedTuple):
    """A flag of the command alone, false unless it is given."""

    help: str


def parse(
    name: str, argv: Sequence[str], *, description: str | None = None, **arguments: Any
) -> Any:
    """Read the arguments of a command, and check the ranges of its options.

    Exits with status 2 and a message that names the flag when one is unknown or of the wrong type.

    Args:
        name: Of the command.
        argv: Arguments after the command.
        description: At the top of the help; None: the docstring of the command.
        **arguments: By name: a `Positional` or a `Flag`; a dataclass of options, whose fields are
            flags; or an instance of one, or of a dataclass of groups of them, whose values flags
            override.

    Returns:
        An object with an attribute for each of `arguments`.

    Raises:
        DistillError: An option that has been removed, or a value out of range.
    """
    import tyro

    from distill.config import REMOVED_OPTIONS, check_options

    known = {option for one in arguments.values() for option in _options(one)}
    removed = [option for option in given_options(argv) if option in REMOVED_OPTIONS.keys() - known]
    if removed:
        raise DistillError("; ".join(REMOVED_OPTIONS[option] for option in removed))
    flags = make_dataclass(
        "Flags", [(key, *_field(one)) for key, one in arguments.items()], kw_only=True, frozen=True
    )
    config: tuple[Any, ...] = (tyro.conf.OmitArgPrefixes,)
    if any(option.startswith("no_") for option in known):  # else tyro makes --no-no-... as well
        config += (tyro.conf.FlagCreatePairsOff,)
    given: Any = tyro.cli(
        flags,
        args=argv,
        prog=f"distill {name}",
        description=COMMANDS[name].description if description is None else description,
        config=config,
        registry=_number_rule(),
    )
    for key, one in arguments.items():
        value = getattr(given, key)
        if is_dataclass(one) and not isinstance(one, type) and type(value) is not type(one):
            object.__setattr__(given, key, type(one)(**vars(value)))
        if is_dataclass(value):
            check_options(value)
    return given


def _field(argument: Any) -> tuple[Any, Any]:
    """Return annotation and default of an argument as a field of a dataclass that tyro reads."""
    import tyro

    if isinstance(argument, Positional):
        annotation = tyro.conf.Positional[
            Annotated[argument.type, tyro.conf.arg(help=argument.help)]
        ]
        return annotation, field(default=argument.default)
    if isinstance(argument, Flag):
        return Annotated[bool, tyro.conf.arg(help=argument.help)], field(default=False)
    if isinstance(argument, type):
        is_required = any(
            one.default is MISSING and one.default_factory is MISSING for one in fields(argument)
        )
        default = field() if is_required else field(default_factory=argument)
        return Annotated[argument, tyro.conf.arg(name="")], default
    groups = vars(argument)
    if not any(map(is_dataclass, groups.values())):
        return type(argument), field(default=argument)
    # A group may be declared as Any: what it is now says which flags there are.
    concrete = make_dataclass(
        type(argument).__name__,
        [(name, type(group), field(default=group)) for name, group in groups.items()],
        frozen=True,
    )
    return Annotated[concrete, tyro.conf.arg(name="")], field(default=concrete())


def _options(argument: Any) -> list[str]:
    """Return the names of the options of an argument of `parse`."""
    if isinstance(argument, (Positional, Flag)):
        return []
    if isinstance(argument, type):
        return [option.name for option in fields(argument)]
    groups = [group for group in vars(argument).values() if is_dataclass(group)]
    return [name for group in groups or [argument] for name in vars(group)]


def _number_rule() -> Any:
    """Return a registry of tyro whose refusals of numbers do not list the types that were tried."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    numbers: dict[type, tuple[str, str]] = {
        int: ("INT", "a whole number, such as 10"),
        float: ("FLOAT", "a number, such as 0.1 or 1e-4"),
    }
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        is_union = info.type_origin in (Union, UnionType)
        types = {
            one.__origin__ if get_origin(one) is Annotated else one
            for one in (get_args(info.type) if is_union else (info.type,))
        }
        is_optional = type(None) in types
        (kind, *others) = types - {type(None)} or {None}
        if others or kind not in numbers:
            return None
        metavar, words = numbers[kind]

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
            is_instance=lambda value: isinstance(value, (int, *types)),  # whole numbers, too
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def flag_values(argv: Sequence[str], flag: str) -> list[str]:
    """Return the values of a flag that must be known before the others are parsed."""
    values: list[str] = []
    is_open = False
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            is_open = name == flag and not equals
            values += [value] if name == flag and equals else []
        elif is_open:
            values.append(argument)
    return values


def given_options(argv: Sequence[str]) -> list[str]:
    """Return the names of all flags, as the options they set: `batch_size` for --batch-size 8."""
    flags = [argument[2:].partition("=")[0] for argument in argv if argument.startswith("--")]
    return [flag.replace("-", "_") for flag in flags]


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one number a line, by name."""
    print_table(
        [
            (name, f"{value:.4f}" if isinstance(value, float) else str(value))
            for name, value in metrics.items()
        ]
    )


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print left-aligned columns."""
    lines = [*([header] if header else []), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
