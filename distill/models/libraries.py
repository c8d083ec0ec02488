"""Models of timm and torchvision as teachers or students: `timm:NAME` and `torchvision:NAME`.

The classifier is removed; the embedding is its input. Both libraries are imported only when needed,
after a check that torchvision is compatible with the installed torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from distill.device import require_torchvision
from distill.errors import DistillError, UnknownNameError
from distill.models.layout import PyTorchLayout
from distill.models.networks import InputSpec, Interpolation, NetworkSpec

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
_TORCHVISION_HEADS = (
    *("fc.", "classifier.", "head.", "heads."),
    *(f"{name}." for name in AUXILIARY_HEADS),
)


def library_spec(name: str) -> NetworkSpec | None:
    """Return the spec of `timm:NAME` or `torchvision:NAME`; None if `name` has no such prefix.

    Raises:
        UnknownNameError: The library has no such model.
        DistillError: timm is not installed, or torchvision is not compatible with torch.
    """
    library, _, model_name = name.partition(":")
    if library == "timm" and model_name:
        return _timm_spec(name, model_name)
    if library == "torchvision" and model_name:
        return _torchvision_spec(name, model_name)
    return None


def torchvision_models() -> Any:
    """Import `torchvision.models`; `DistillError` if torchvision does not match torch."""
    require_torchvision()
    from torchvision import models

    return models


def _timm_spec(name: str, model_name: str) -> NetworkSpec:
    require_torchvision()  # which timm imports
    try:
        import timm
    except ImportError as error:
        raise DistillError(
            f"{name} needs the timm library; install it with pip install timm"
        ) from error
    architecture = model_name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown("timm model", model_name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:  # an unknown tag
        known = timm.list_pretrained(architecture) or [architecture]
        raise UnknownNameError("timm model", model_name, known[:8]) from error
    classifier = (config.classifier if config is not None else None) or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)

    def build(image_size: int) -> nn.Module:
        return timm.create_model(model_name, pretrained=False, num_classes=0)

    return NetworkSpec(
        name=name,
        build=build,
        input=_timm_input(config),
        layout=PyTorchLayout(ignored=tuple(f"{head}." for head in heads)),
        pretrained=_pretrained(
            name, lambda: timm.create_model(model_name, pretrained=True, num_classes=0)
        ),
    )


def _timm_input(config: Any) -> InputSpec:
    if config is None:
        return InputSpec()
    return InputSpec(
        image_size=config.input_size[-1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        crop_fraction=config.crop_pct or 0.875,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
    )


def _torchvision_spec(name: str, model_name: str) -> NetworkSpec:
    models = torchvision_models()
    known = models.list_models(module=models)
    if model_name not in known:
        raise _unknown("torchvision model", model_name, known)

    def make(weights: str | None) -> nn.Module:
        model = models.get_model(model_name, weights=weights)
        remove_auxiliary_heads(model)
        remove_classifier(model, name)
        return model

    return NetworkSpec(
        name=name,
        build=lambda image_size: make(None),
        input=_torchvision_input(models.get_model_weights(model_name)),
        layout=PyTorchLayout(ignored=_TORCHVISION_HEADS),
        pretrained=_pretrained(name, lambda: make("DEFAULT")),
    )


def _torchvision_input(weights: Any) -> InputSpec:
    if not hasattr(weights, "DEFAULT"):
        return InputSpec()
    preset = weights.DEFAULT.transforms()
    side, resized = preset.crop_size[0], preset.resize_size[0]
    interpolation: Interpolation = (
        "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
    )
    return InputSpec(side, tuple(preset.mean), tuple(preset.std), side / resized, interpolation)


def remove_classifier(model: nn.Module, name: str) -> None:
    """Replace the last linear layer (the classifier) by the identity; `DistillError` if none."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise DistillError(
            f"{name} has no linear classifier to remove, so its embedding is not defined here; "
            "choose another model"
        )
    parent, _, attribute = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())


def remove_auxiliary_heads(model: nn.Module) -> None:
    """Remove the heads that GoogLeNet and Inception v3 use only in training, in place."""
    if not hasattr(model, "aux_logits"):
        return
    for name in AUXILIARY_HEADS:
        if hasattr(model, name):
            setattr(model, name, None)
    setattr(model, "aux_logits", False)  # noqa: B010  (to the type checker all are modules)


def _pretrained(name: str, make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    """Return a function that copies the weights of the published model into a backbone."""

    def load(backbone: nn.Module) -> None:
        try:
            published = make()
        except Exception as error:  # connection, HTTP, cache, value: hubs raise many types
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DistillError(
                f"the pretrained weights of {name} could not be fetched ({reason}); connect to "
                "the network once, or pass a file (--teacher-weights or --student-weights)"
            ) from error
        backbone.load_state_dict(published.state_dict())

    return load


def _unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """Return an error that lists the closest names only."""
    near = difflib.get_close_matches(name, known, n=8, cutoff=0.4)
    return UnknownNameError(kind, name, near or known[:8])
