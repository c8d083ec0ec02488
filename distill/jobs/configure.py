"""Where a configuration comes from: a recipe or the run that is continued, then what was asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from distill.config import RunOptions, TrainConfig
from distill.engine.run_directory import holds_run, read_config, require_usable
from distill.errors import DistillError
from distill.options import flattened, updated
from distill.pretrain_config import PretrainConfig
from distill.recipes import CONFIGS, load_recipe

Config = TypeVar("Config", TrainConfig, PretrainConfig)

# What may change between the sittings of one run: where things lie and how they are executed.
_FREE_TO_CHANGE = frozenset(
    {
        *("output", "resume", "recipe", "data", "teacher_weights", "student_weights"),
        *(
            "device",
            "num_workers",
            "teacher_batch_size",
            "teacher_cache",
            "loss_implementation",
            *("on_bad_image", "max_bad_images"),
        ),
        *("log_every", "nn_every", "checkpoint_every", "keep_every", "on_failed_checkpoint"),
        *("queue_sharding", "measure"),
    }
)

# What a recipe says of some options only goes with what it says of another.
STANDS_WITH = {"variant": ("momentum",), "anchors": ("queue_size", "queue_init")}


def run_to_continue(output: Path | None, options: Collection[str]) -> Path | None:
    """Return the run that `--resume` goes on with; None where it has to be begun.

    A command that names what to train can begin a run, and is the same one whenever it is started
    again: by an elastic launcher or a cluster's queue. One that names only where the run lies
    cannot, and is told so by `base_config`.

    Args:
        output: Run directory that was named.
        options: Names of all options that were given, `resume` among them.
    """
    if "resume" not in options or output is None:
        return None
    says_what = any(name == "recipe" or name not in _FREE_TO_CHANGE for name in options)
    return None if says_what and not holds_run(output) else output


def base_config(
    *,
    command: str = "train",
    recipe: str = "default",
    resume_from: Path | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Any:
    """Return the defaults that options override: a recipe's, or those of the run to continue.

    Args:
        command: `train` or `pretrain`.
        recipe: Name of a recipe or path of a YAML file.
        resume_from: Directory of the run to continue, if any.
        asked: What overrides the options of `STANDS_WITH`, by name; a recipe that says otherwise
            no longer says what goes with its own.

    Raises:
        DistillError: Unknown recipe, or no run to continue.
    """
    if resume_from is None:
        return _without_stranded(load_recipe(recipe, command), asked or {})
    require_usable(resume_from, resume=True)
    stored = read_config(resume_from, command=command)
    return updated(CONFIGS[command](), stored, source=f"{resume_from}/config.yaml")


def _without_stranded(config: Config, asked: Mapping[str, Any]) -> Config:
    """Return a recipe with the defaults of what goes with a value that is overridden."""
    said, defaults = flattened(config), flattened(type(config)())
    stranded = {
        name: defaults[name]
        for option, names in STANDS_WITH.items()
        if asked.get(option) not in (None, said.get(option))
        for name in names
    }
    return updated(config, stranded, source="recipe")


def configure(options: Mapping[str, Any], *, command: str = "train") -> Any:
    """Build a configuration from flat options, as `distill.train` takes them.

    Args:
        options: Values by option name.
        command: `train` or `pretrain`.

    Raises:
        DistillError: An unknown option or recipe, or a value of the wrong type.
    """
    output = options.get("output")
    resume_from = run_to_continue(
        Path(output) if output else None,
        [name for name in options if name != "resume" or options[name]],
    )
    recipe = options.get("recipe", "default")
    base = base_config(command=command, recipe=recipe, resume_from=resume_from, asked=options)
    return updated(base, options, source=f"distill.{command}")


def require_same_run(config: Any) -> None:
    """Refuse to continue a run under other settings than it began with.

    Raises:
        DistillError: Naming every option that differs, with both values.
    """
    assert config.run.output is not None
    differing = _differences(read_config(config.run.output), config, "the run", "was asked for")
    if differing:
        raise DistillError(
            f"{config.run.output} cannot be continued under other settings: {'; '.join(differing)}"
            ". Leave these flags out, or start a new run with another --output"
        )


def identity(config: Any) -> dict[str, Any]:
    """Return the options that decide what a run is, by name."""
    flat = flattened(config)
    return {name: value for name, value in flat.items() if name not in _FREE_TO_CHANGE}


def require_own_checkpoint(path: Path, run: Mapping[str, Any], config: Any) -> None:
    """Refuse a checkpoint that another run wrote.

    Args:
        path: Of the checkpoint.
        run: The options in it.
        config: Of the run that goes on.

    Raises:
        DistillError: Naming every option that differs, with both values.
    """
    differing = _differences(run, config, "the checkpoint", "in the run")
    if differing:
        raise DistillError(
            f"checkpoint {path} is of another run: {'; '.join(differing)}. Put the run's own "
            "checkpoints back, or start a new run with another --output"
        )


def _differences(stored: Mapping[str, Any], config: Any, there: str, here: str) -> list[str]:
    return [
        f"--{name.replace('_', '-')} is {stored[name]} in {there} and {value} {here}"
        for name, value in identity(config).items()
        if name in stored and stored[name] != value
    ]


def with_output(config: Config, *names: str) -> Config:
    """Fill in the default run directory, named after what the run is made of."""
    run: RunOptions = config.run
    if run.output is not None:
        return config
    name = "-".join(part.rstrip("/").split("/")[-1].replace(":", "_") for part in names)
    return replace(config, run=replace(run, output=Path("runs") / name))
