"""Objects in place of names: networks, data sets, callbacks and method options given in Python.

They travel beside the configuration, which records what they are: `module:package.Class`,
`dataset:package.Class`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from distill.data.sources import ImageData, open_data_object
from distill.errors import DistillError
from distill.models.networks import MODULE_PREFIX, EmbeddingNetwork, wrap_module
from distill.training.callbacks import Callback


@dataclass(frozen=True)
class RunObjects:
    """What a run is given beside its configuration.

    Attributes:
        teacher: Used in place of the network that the configuration names.
        student: The same; it is trained.
        data: Used in place of the data that the configuration names.
        callbacks: Told of steps, epochs, evaluations and the end, on the first rank.
    """

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    data: ImageData | None = None
    callbacks: Sequence[Callback] = ()


NO_OBJECTS = RunObjects()


def split_objects(given: Mapping[str, Any]) -> tuple[dict[str, Any], RunObjects]:
    """Take the objects out of keywords, and leave in their place what they are called.

    Args:
        given: Keywords of `distill.train`, `distill.pretrain` or `distill.cache`.

    Returns:
        Options by name, and the objects.

    Raises:
        DistillError: A data set that cannot be used, or options of no method.
    """
    options = dict(given)
    callbacks = options.pop("callbacks", ())
    data_key = options.pop("data_key", None)
    modules: dict[str, nn.Module] = {}
    for role in ("teacher", "student"):
        if isinstance(options.get(role), nn.Module):
            modules[role] = options[role]
            options[role] = network_name(options[role])
        elif isinstance(options.get(role), Path):
            options[role] = str(options[role])
    data = None
    if not isinstance(options.get("data"), (str, Path, type(None))):
        workers = options.get("num_workers")
        data = open_data_object(options["data"], data_key=data_key, num_workers=workers)
        options["data"] = data.source
    elif data_key is not None:
        raise DistillError("data_key goes with a data set given as an object; leave it out")
    elif isinstance(options.get("data"), Path):
        options["data"] = str(options["data"])
    if is_dataclass(options.get("method")):
        options |= _method_options(options["method"])
    return options, RunObjects(modules.get("teacher"), modules.get("student"), data, callbacks)


def network_name(module: nn.Module) -> str:
    """Return what the configuration calls a network that is given as an object."""
    if isinstance(module, EmbeddingNetwork):
        return module.spec.name
    return f"{MODULE_PREFIX}{type(module).__module__}.{type(module).__qualname__}"


def as_network(
    module: nn.Module, *, image_size: int | None = None, crop_fraction: float = 0.875
) -> EmbeddingNetwork:
    """Return a module as a network for images of a side.

    Args:
        module: A module of a person's own, or a network.
        image_size: Side of its input in pixels; None: the network's own, 224 for a module.
        crop_fraction: Of the evaluation view of a module; a network brings its own.

    Raises:
        DistillError: It cannot take such images, or does not return embeddings.
    """
    if not isinstance(module, EmbeddingNetwork):
        return wrap_module(module, image_size=image_size or 224, crop_fraction=crop_fraction)
    if image_size in (None, module.input.image_size):
        return module
    spec = replace(module.spec, input=replace(module.input, image_size=image_size))
    return EmbeddingNetwork(module.backbone, spec)


def _method_options(method: Any) -> dict[str, Any]:
    """Return the name of the method that options belong to, and their values."""
    from distill.losses import METHODS

    names = [name for name, loss in METHODS.items() if loss.Options is type(method)]
    if len(names) != 1:
        kind = f"{type(method).__module__}.{type(method).__qualname__}"
        belongs = f"are those of {' and '.join(names)}" if names else "belong to no method"
        raise DistillError(
            f"the options {kind} {belongs}; give method=NAME and the options as keywords"
        )
    return {"method": names[0], **vars(method)}
