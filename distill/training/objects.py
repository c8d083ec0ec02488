"""Objects in place of names: networks, data sets, callbacks and method options given in Python.

They travel beside the configuration, which records what they are: `module:package.Class`,
`dataset:package.Class`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distill.data.sources import ImageData, open_data_object
from distill.errors import DistillError
from distill.models.networks import EmbeddingNetwork, wrap_module
from distill.training.callbacks import Callback
from teachers.load import freeze


@dataclass(frozen=True)
class RunObjects:
    """What a run is given beside its configuration.

    Attributes:
        teacher: Used in place of the network that the configuration names.
        student: The same.
        data: Used in place of the data that the configuration names.
        callbacks: Told of steps, epochs, evaluations and the end, on the first rank.
    """

    teacher: EmbeddingNetwork | None = None
    student: EmbeddingNetwork | None = None
    data: ImageData | None = None
    callbacks: Sequence[Callback] = ()

    @property
    def beside(self) -> tuple[Any, ...]:
        """Until the jobs take objects: nothing where there are none."""
        return () if self == RunObjects() else (self,)


def split_objects(given: Mapping[str, Any]) -> tuple[dict[str, Any], RunObjects]:
    """Take the objects out of keywords, and leave in their place what they are called.

    Args:
        given: Keywords of `distill.train`, `distill.pretrain` or `distill.cache`.

    Returns:
        Options by name, and the objects.

    Raises:
        DistillError: An object that cannot be used, or options of no method.
    """
    options = dict(given)
    callbacks = options.pop("callbacks", ())
    data_key = options.pop("data_key", None)
    networks = {}
    for role in ("teacher", "student"):
        if isinstance(options.get(role), nn.Module):
            module = options[role]
            network = module if isinstance(module, EmbeddingNetwork) else wrap_module(module)
            networks[role] = freeze(network) if role == "teacher" else network
            options[role] = network.spec.name
        elif isinstance(options.get(role), Path):
            options[role] = str(options[role])
    data = None
    if not isinstance(options.get("data"), (str, Path, type(None))):
        workers = options.get("num_workers")
        data = open_data_object(options["data"], data_key=data_key, num_workers=workers)
        options["data"] = data.source
    elif data_key is not None:
        raise DistillError("data_key goes with a data set given as an object; leave it out")
    if is_dataclass(options.get("method")):
        options |= _method_options(options["method"])
    return options, RunObjects(networks.get("teacher"), networks.get("student"), data, callbacks)


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
