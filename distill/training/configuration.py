"""The configuration of a run: where it comes from, what contradicts, what follows the data.

A configuration starts from a recipe, or from the run that is continued, and takes what was asked
for on top. The published settings are made for 1.28 million images and 650,000 steps. On another
set the same numbers mean something else: a momentum of 0.999 over 360 steps leaves 70 % of the
initial weights in the momentum copy, and a queue larger than the training set holds an image's own
old embeddings. What an option means (a share of the run, a share of the images) is kept here, not
its number. A method's own options are resolved and refused by the method (`distill.losses`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from distill.config import (
    AccumulationOptions,
    BackboneOptions,
    ImageOptions,
    MethodChoice,
    NetworkOptions,
    OptimizationOptions,
    PretrainMethodChoice,
    RunOptions,
    TwoViewOptions,
    ViewOptions,
    flattened,
    option_names,
    range_problems,
    updated,
)
from distill.errors import DistillError
from distill.losses import METHODS, CompRess, load_plugins
from distill.losses.base import MethodFacts
from distill.recipes import read_recipe
from distill.registry import Registry
from distill.run_directory import holds_run, read_config, require_usable
from teachers.c_byol import CBYOL
from teachers.pretraining import LONG_RUN, PRETRAIN_METHODS


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a distillation run.

    `loss` is an instance of the `Options` of the method that `method` names.
    """

    networks: NetworkOptions = field(default_factory=NetworkOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    method: MethodChoice = field(default_factory=MethodChoice)
    loss: Any = field(default_factory=CompRess.Options)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pre-training run; `loss` as in `TrainConfig`."""

    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    views: TwoViewOptions = field(default_factory=TwoViewOptions)
    method: PretrainMethodChoice = field(default_factory=PretrainMethodChoice)
    loss: Any = field(default_factory=CBYOL.Options)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    accumulation: AccumulationOptions = field(default_factory=AccumulationOptions)
    run: RunOptions = field(default_factory=RunOptions)


CONFIGS: dict[str, type[Any]] = {"train": TrainConfig, "pretrain": PretrainConfig}
_METHODS: dict[type[Any], Registry[Any]] = {TrainConfig: METHODS, PretrainConfig: PRETRAIN_METHODS}
Config = TypeVar("Config", TrainConfig, PretrainConfig)
Value = TypeVar("Value")

# What may change when a run is continued: where things lie and how they are executed.
_FREE_TO_CHANGE = frozenset(
    {
        *("output", "resume", "recipe", "plugin", "data", "teacher_weights", "student_weights"),
        *("device", "num_workers", "teacher_batch_size", "teacher_cache", "loss_implementation"),
        *("on_bad_image", "max_bad_images", "queue_sharding", "measure"),
        *("log_every", "nn_every", "checkpoint_every", "keep_every", "on_failed_checkpoint"),
    }
)

# What a recipe says of some options only goes with what it says of another.
STANDS_WITH = {"variant": ("momentum",), "anchors": ("queue_size", "queue_init")}

# Of options that are gone, what an older run or recipe may still say.
_REMOVED_DEFAULTS: dict[str, Any] = {
    "predictor": "linear",
    "small_crops": 0,
    "small_crop_size": None,
    "num_teacher_views": 1,
}
_OLD_SPELLINGS = {"teacher_view": {"centre": "center"}}


def foreign_option(name: str, config: Any) -> str | None:
    """Return the sentence that refuses an option of another method; None for no such option.

    Args:
        name: Of the option.
        config: Of the run, whose method it is compared with.
    """
    others = [] if name in option_names(config) else _holders(name, type(config))
    if not others:
        return None
    *most, last = others
    names = f"{', '.join(most)} or {last}" if most else last
    return (
        f"{_flag(name)} goes with --method {names}, not with {config.method.method}; leave it out"
    )


def _holders(name: str, config_type: type[Any]) -> list[str]:
    """Return the methods that have an option."""
    return [
        method
        for method, loss in _METHODS[config_type].items()
        if name in {option.name for option in fields(loss.Options)}
    ]


def with_options(config: Config, options: Mapping[str, Any], *, source: str) -> Config:
    """Return a configuration with `options` (flat: name -> value) replaced.

    Another method than the configuration's brings the defaults of its own options.

    Args:
        config: The configuration to start from.
        options: Values by option name; hyphens and underscores are the same.
        source: Where the options come from, for the error message.

    Raises:
        DistillError: An unknown, removed or other method's option, a value of the wrong type or out
            of range, an unknown method, or a plugin that cannot be imported.
    """
    options = {name.replace("-", "_"): value for name, value in options.items()}
    if isinstance(config, TrainConfig) and options.get("plugin"):
        # Checked first as any option, then imported: what follows may need its methods.
        chosen = {"plugin": options["plugin"]}
        load_plugins(updated(config, chosen, source=source).method.plugin)
    method = options.get("method", config.method.method)
    if isinstance(method, str) and method != config.method.method:
        loss = _METHODS[type(config)].get(method).Options()
        config = replace(config, method=replace(config.method, method=method), loss=loss)
    foreign = [foreign_option(name, config) for name in options]
    problems = [sentence for sentence in foreign if sentence is not None]
    if problems:
        raise DistillError(f"{source}: {'; '.join(problems)}")
    return updated(config, options, source=source)


def default_options(command: str, method: str | None = None) -> dict[str, Any]:
    """Return every option of a command with its default, for a method or the usual one."""
    config = CONFIGS[command]()
    if method is not None and method in _METHODS[type(config)]:
        config = with_options(config, {"method": method}, source="defaults")
    return flattened(config)


def load_recipe(name: str, command: str = "train") -> Any:
    """Return the configuration that the recipe `name` (or the YAML file `name`) gives a command.

    Raises:
        DistillError: Unknown recipe, unreadable file, unknown option or value of the wrong type.
    """
    source = f"recipe {name}"
    options = _without_removed(read_recipe(name, command))
    config = with_options(CONFIGS[command](), options, source=source)
    return replace(config, run=replace(config.run, recipe=name))


def stored_config(options: Mapping[str, Any], command: str, *, source: str) -> Any:
    """Return the configuration of a run from its config.yaml, as older releases wrote it, too.

    They wrote down the options of all methods, and some that are gone; those decide nothing.

    Args:
        options: As `read_config` returns them.
        command: `train` or `pretrain`.
        source: What to call it in messages.

    Raises:
        DistillError: An option or value that this release does not know.
    """
    stored = {
        name: _current_spelling(name, value) for name, value in _without_removed(options).items()
    }
    config_type = CONFIGS[command]
    if command == "train":
        load_plugins([Path(path) for path in stored.get("plugin") or ()])
    method = stored.get("method", config_type().method.method)
    own = {one.name: one.default for one in fields(_METHODS[config_type].get(method).Options)}
    stored = {
        # None stood for a method's own default.
        name: own[name] if name in own and value is None else value
        for name, value in stored.items()
        if name in own or not _holders(name, config_type)
    }
    return with_options(config_type(), stored, source=source)


def _without_removed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those that are gone and say nothing; others are refused later."""
    return {
        name: value
        for name, value in options.items()
        if name not in _REMOVED_DEFAULTS or value != _REMOVED_DEFAULTS[name]
    }


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
        asked: What overrides them, by name, as far as the defaults depend on it: `method`, `plugin`
            and the options of `STANDS_WITH`. A recipe that says otherwise no longer says what goes
            with its own.

    Raises:
        DistillError: Unknown recipe, method or plugin, or no run to continue.
    """
    asked = {name: value for name, value in (asked or {}).items() if value is not None}
    chosen: dict[str, Any] = {name: asked[name] for name in ("plugin", "method") if name in asked}
    if resume_from is not None:
        require_usable(resume_from, resume=True)
        stored = read_config(resume_from, command=command)
        config = stored_config(stored, command, source=f"{resume_from}/config.yaml")
        return with_options(config, chosen, source="the command line")
    load_plugins([Path(path) for path in chosen.get("plugin", ())])
    config = with_options(load_recipe(recipe, command), chosen, source="the command line")
    return _without_stranded(config, asked)


def _without_stranded(config: Config, asked: Mapping[str, Any]) -> Config:
    """Return a recipe with the defaults of what goes with a value that is overridden."""
    said = flattened(config)
    defaults = {**flattened(type(config)()), **vars(type(config.loss)())}
    stranded = {
        name: defaults[name]
        for option, names in STANDS_WITH.items()
        if option in said and asked.get(option) not in (None, said[option])
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
    options = {name.replace("-", "_"): value for name, value in options.items()}
    output = options.get("output")
    resume_from = run_to_continue(
        Path(output) if output else None,
        [name for name in options if name != "resume" or options[name]],
    )
    recipe = options.get("recipe", "default")
    asked = {name: options.get(name) for name in STANDS_WITH}
    base = base_config(command=command, recipe=recipe, resume_from=resume_from, asked=asked)
    return with_options(base, options, source=f"distill.{command}")


def check(config: TrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once; an unknown method alone.
    """
    METHODS.get(config.method.method)
    _complain([*_missing(config), *range_problems(config), *_contradictions(config)])


def check_pretraining(config: PretrainConfig) -> None:
    """Refuse values out of range and flags that contradict each other.

    Raises:
        DistillError: One sentence per problem, all of them at once.
    """
    _complain([*range_problems(config), *_pretraining_contradictions(config)])


def _complain(problems: list[str]) -> None:
    if problems:
        raise DistillError("; ".join(problems))


def _missing(config: TrainConfig) -> list[str]:
    networks = config.networks
    has_none = METHODS.get(config.method.method).teacher == "never"
    return [
        *([] if has_none else _missing_network("teacher", networks.teacher)),
        *_missing_network("student", networks.student),
    ]


def _missing_network(role: str, name: str | None) -> list[str]:
    if name:
        return []
    return [f"--{role} is missing: name a {role} (`distill list {role}s` shows them)"]


def _contradictions(config: TrainConfig) -> list[str]:
    networks, views, name = config.networks, config.views, config.method.method
    loss = METHODS.get(name)
    problems = _shared_contradictions(config.optimization, config.run)
    problems += loss.contradictions(config.loss, config)
    if views.student_crops > 1 and not loss.takes_views:
        several = [other for other, one in METHODS.items() if one.takes_views]
        problems.append(
            f"--student-crops {views.student_crops} goes with --method {' or '.join(several)}, "
            f"{name} looks at one crop; leave it out"
        )
    if networks.student_init == "scaled" and networks.student_weights is not None:
        problems.append(
            "--student-init scaled changes weights that --student-weights "
            f"{networks.student_weights} brings; leave one of them out"
        )
    return problems + _teacher_contradictions(networks, name)


def _teacher_contradictions(networks: NetworkOptions, method: str) -> list[str]:
    problems = []
    is_online = networks.teacher_view == "student"
    if METHODS.get(method).teacher != "every step":
        does = {"once": "clusters its center crops before training", "never": "needs no teacher"}
        does_so = f"--method {method}, which {does[METHODS.get(method).teacher]}"
        if is_online:
            problems.append(f"--teacher-view student does not go with {does_so}; leave it out")
        return problems
    if is_online and networks.teacher_image_size:
        problems.append(
            "--teacher-image-size goes with --teacher-view center: a teacher that sees the "
            "student's crop sees it at --image-size; leave one of them out"
        )
    if is_online and networks.teacher_cache is not None:
        problems.append(
            "--teacher-cache goes with --teacher-view center: what a teacher makes of the "
            "student's crop is not kept; leave one of them out"
        )
    return problems


def _pretraining_contradictions(config: PretrainConfig) -> list[str]:
    optimization = config.optimization
    problems = _shared_contradictions(optimization, config.run)
    if config.views.augmentation == "none":
        problems.append(
            f"--augmentation none gives two equal views and {config.method.method} learns by "
            "comparing two different ones; use photo or glyph"
        )
    parts = config.accumulation.accumulate
    size = optimization.batch_size
    if parts > 1 and size is not None and parts * 2 > size:
        problems.append(
            f"--accumulate {parts} cuts a batch of {size} into parts of fewer than 2 images; lower "
            "it or raise --batch-size"
        )
    return problems


def _shared_contradictions(optimization: OptimizationOptions, run: RunOptions) -> list[str]:
    problems = []
    if run.resume and run.output is None:
        problems.append("--resume needs --output: name the run directory to continue")
    epochs, warmup = optimization.epochs, optimization.warmup_epochs
    if epochs is not None and warmup is not None and warmup >= epochs:
        problems.append(f"--warmup-epochs is {warmup}, it must be less than --epochs {epochs}")
    return problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


PUBLISHED_BATCH_SIZE = 256
# Least share of an image that a student's crop shows; of crop-flip 0.08 is published, but a teacher
# speaks of the center crop, and few epochs do not teach what a twelfth of it has to do with that.
DEFAULT_MIN_CROP_AREA = {"crop-flip": 0.5, "crop": 0.6}
NN_CHECKS_PER_RUN = 5
# Peak learning rates at the published batch size; they follow the batch linearly for SGD and by its
# square root for AdamW and Muon, whose steps are normalized.
PEAK_LEARNING_RATE = {"sgd": 0.1, "adamw": 5e-4, "muon": 5e-4, "lars": 0.3}
# Of a student with normalization layers, whose steps are as large as its weights let them be.
NORMALIZED_PEAK_LEARNING_RATE = {**PEAK_LEARNING_RATE, "adamw": 1.5e-3, "muon": 1.5e-3}
SCALING_POWER = {"sgd": 1.0, "adamw": 0.5, "muon": 0.5, "lars": 1.0}


@dataclass(frozen=True)
class DataFacts:
    """What the options follow: training images, native side in pixels, augmentation, floor."""

    num_images: int
    native_size: int | None
    augmentation: str
    min_image_size: int
    default_num_workers: int


def resolve(
    config: TrainConfig,
    facts: DataFacts,
    *,
    teacher_dim: int,
    student_normalizes: bool,
    published_projection_dim: int | None = None,
) -> TrainConfig:
    """Return `config` with every option that follows the data filled in.

    Args:
        config: The configuration; options that are given stay as they are.
        facts: About the images that are trained on.
        teacher_dim: Width of the teacher's embedding; 0 for a method without a teacher.
        student_normalizes: Whether the student has normalization layers.
        published_projection_dim: Width of the layer that the published recipe trains the student
            through, if any.
    """
    peaks = NORMALIZED_PEAK_LEARNING_RATE if student_normalizes else PEAK_LEARNING_RATE
    optimization = resolve_optimization(config.optimization, facts.num_images, peaks=peaks)
    epochs = require_resolved(optimization.epochs)
    num_steps = epochs * math.ceil(facts.num_images / require_resolved(optimization.batch_size))
    of_method = MethodFacts(
        num_images=facts.num_images,
        num_steps=num_steps,
        teacher_view=config.networks.teacher_view,
        teacher_dim=teacher_dim,
        published_projection_dim=published_projection_dim
        if config.run.recipe == "published"
        else None,
    )
    return replace(
        config,
        networks=_resolve_networks(config.networks, student_normalizes=student_normalizes),
        images=resolve_images(config.images, facts),
        views=_resolve_views(config.views, facts),
        loss=METHODS.get(config.method.method).resolve(config.loss, of_method),
        optimization=optimization,
        run=resolve_run(config.run, epochs),
    )


def _resolve_networks(options: NetworkOptions, *, student_normalizes: bool) -> NetworkOptions:
    """Fill in how the student starts; one that starts from weights is left as they are."""
    scaled = options.student_weights is None and not student_normalizes
    init = default_if_none(options.student_init, "scaled" if scaled else "random")
    return replace(options, student_init=init)


def _resolve_views(options: ViewOptions, facts: DataFacts) -> ViewOptions:
    """Fill in how crops are drawn."""
    augmentation = default_if_none(options.augmentation, facts.augmentation)
    area = default_if_none(options.min_crop_area, DEFAULT_MIN_CROP_AREA.get(augmentation))
    return replace(options, augmentation=augmentation, min_crop_area=area)


def resolve_images(options: ImageOptions, facts: DataFacts) -> ImageOptions:
    """Fill in the side of the view and the number of loader processes."""
    return replace(
        options,
        image_size=default_if_none(options.image_size, _default_image_size(facts)),
        num_workers=default_if_none(options.num_workers, facts.default_num_workers),
    )


def resolve_run(options: RunOptions, epochs: int) -> RunOptions:
    """Fill in how often the network is checked between epochs."""
    every = max(1, round(epochs / NN_CHECKS_PER_RUN))
    return replace(options, nn_every=default_if_none(options.nn_every, every))


def resolve_optimization(
    options: OptimizationOptions,
    num_images: int,
    *,
    peaks: Mapping[str, float],
    min_steps: int = 64,
) -> OptimizationOptions:
    """Fill in length, batch size and learning rate.

    Args:
        options: What is given stays as it is.
        num_images: Images that are trained on.
        peaks: Peak learning rate at a batch of 256, by optimizer.
        min_steps: Steps of an epoch, about, at least: fewer leave a small set without enough
            updates.
    """
    epochs = default_if_none(options.epochs, 100 if num_images >= 5_000 else 20)
    power = math.floor(math.log2(max(num_images / min_steps, 1)))
    batch_size = default_if_none(options.batch_size, min(PUBLISHED_BATCH_SIZE, max(32, 2**power)))
    scale = (batch_size / PUBLISHED_BATCH_SIZE) ** SCALING_POWER[options.optimizer]
    return replace(
        options,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=default_if_none(options.learning_rate, peaks[options.optimizer] * scale),
        warmup_epochs=default_if_none(options.warmup_epochs, epochs / 20),
    )


def _default_image_size(facts: DataFacts) -> int:
    """224 px for folders; small sets at least at 32 px, for ResNets to keep a map of 4 x 4."""
    side = 224 if facts.native_size is None else max(32, facts.native_size)
    return max(side, facts.min_image_size)


def require_resolved(value: Value | None) -> Value:
    """Return an option that `resolve` has filled in."""
    assert value is not None, "the configuration is not resolved"
    return value


def default_if_none(value: Any, fallback: Any) -> Any:
    """Return what was given, else what follows the data."""
    return fallback if value is None else value


# AdamW must raise the gammas that start at zero within the run: they move by a rate at a time. On
# small sets more steps did more than more negatives.
_OTHER_RATES = {"sgd": 0.1, "adamw": 6e-3, "muon": 1e-3}
_MIN_STEPS = 128


def resolve_pretraining(config: PretrainConfig, facts: DataFacts) -> PretrainConfig:
    """Return `config` with every option that follows method and data filled in."""
    method = PRETRAIN_METHODS.get(config.method.method)
    epochs = default_if_none(config.optimization.epochs, 100 if facts.num_images >= 5_000 else 200)
    optimization = resolve_optimization(
        replace(config.optimization, epochs=epochs),
        facts.num_images,
        peaks={**_OTHER_RATES, "lars": method.lars_rates[epochs >= LONG_RUN]},
        min_steps=_MIN_STEPS,
    )
    batch_size = require_resolved(optimization.batch_size)
    images = resolve_images(config.images, facts)
    small = require_resolved(images.image_size) < 64
    return replace(
        config,
        backbone=replace(
            config.backbone,
            stem=default_if_none(config.backbone.stem, "small" if small else "imagenet"),
        ),
        images=images,
        views=replace(
            config.views,
            augmentation=default_if_none(config.views.augmentation, facts.augmentation),
        ),
        loss=method.resolve(
            config.loss, epochs=epochs, num_steps=epochs * max(1, facts.num_images // batch_size)
        ),
        optimization=optimization,
        run=resolve_run(config.run, epochs),
    )


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
        if name in stored and _current_spelling(name, stored[name]) != value
    ]


def _current_spelling(name: str, value: Any) -> Any:
    return _OLD_SPELLINGS.get(name, {}).get(value, value) if isinstance(value, str) else value


def with_output(config: Config, *names: str) -> Config:
    """Fill in the default run directory, named after what the run is made of."""
    run: RunOptions = config.run
    if run.output is not None:
        return config
    name = "-".join(part.rstrip("/").split("/")[-1].replace(":", "_") for part in names)
    return replace(config, run=replace(run, output=Path("runs") / name))
