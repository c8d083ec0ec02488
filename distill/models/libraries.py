"""Networks of other libraries by name: `timm:NAME` and `torchvision:NAME`, for either role.

The classifier is removed; the embedding is what it used to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from distill.errors import DistillError, UnknownNameError
from distill.models.layout import PyTorchLayout
from distill.models.networks import InputSpec, Interpolation, NetworkSpec

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
_AUXILIARY = tuple(f"{name}." for name in AUXILIARY_HEADS)


def library_spec(name: str) -> NetworkSpec | None:
    """Describe `timm:NAME` or `torchvision:NAME`; None when `name` has no such prefix.

    Raises:
        UnknownNameError: When the library has no such model.
        DistillError: When timm is not installed.
    """
    library, separator, model_name = name.partition(":")
    if not separator or library not in _LIBRARIES:
        return None
    return _LIBRARIES[library](model_name)


def _timm_spec(model_name: str) -> NetworkSpec:
    try:
        import timm
    except ImportError as error:
        raise DistillError(
            f"timm:{model_name} needs the timm library; install it with pip install timm"
        ) from error
    architecture = model_name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UnknownNameError("timm model", model_name, _near(model_name, timm.list_models()))
    try:
        config = timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:  # an unknown tag
        known = timm.list_pretrained(architecture) or [architecture]
        raise UnknownNameError("timm model", model_name, known[:8]) from error

    def build(image_size: int) -> nn.Module:
        return timm.create_model(model_name, pretrained=False, num_classes=0)

    def load_pretrained(backbone: nn.Module) -> None:
        source = timm.create_model(model_name, pretrained=True, num_classes=0)
        backbone.load_state_dict(source.state_dict())

    return NetworkSpec(
        name=f"timm:{model_name}",
        build=build,
        input=_timm_input(config),
        layout=PyTorchLayout(ignored=_timm_head_keys(config)),
        pretrained=_explained(load_pretrained, f"timm:{model_name}"),
    )


def _timm_input(config: Any) -> InputSpec:
    if config is None:
        return InputSpec()
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    return InputSpec(
        image_size=config.input_size[-1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        crop_fraction=config.crop_pct or 0.875,
        interpolation=interpolation,
    )


def _timm_head_keys(config: Any) -> tuple[str, ...]:
    classifier = (config.classifier if config is not None else None) or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)


def _torchvision_spec(model_name: str) -> NetworkSpec:
    from torchvision import models

    known = models.list_models(module=models)
    if model_name not in known:
        raise UnknownNameError("torchvision model", model_name, _near(model_name, known))

    def build(image_size: int) -> nn.Module:
        backbone = models.get_model(model_name, weights=None)
        remove_auxiliary_heads(backbone)
        remove_classifier(backbone, f"torchvision:{model_name}")
        return backbone

    def load_pretrained(backbone: nn.Module) -> None:
        source = models.get_model(model_name, weights="DEFAULT")
        remove_auxiliary_heads(source)
        remove_classifier(source, f"torchvision:{model_name}")
        backbone.load_state_dict(source.state_dict())

    return NetworkSpec(
        name=f"torchvision:{model_name}",
        build=build,
        input=_torchvision_input(models.get_model_weights(model_name)),
        layout=PyTorchLayout(ignored=("fc.", "classifier.", "head.", "heads.", *_AUXILIARY)),
        pretrained=_explained(load_pretrained, f"torchvision:{model_name}"),
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
    """Replace the last linear layer of `model` (its classifier) by the identity, in place.

    Raises:
        DistillError: When the model has no linear classifier.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise DistillError(
            f"{name} has no linear classifier to remove, so its embedding is not defined here; "
            "choose another model"
        )
    parent, _, attribute = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())


def remove_auxiliary_heads(model: nn.Module) -> None:
    """Take off the heads that GoogLeNet and Inception v3 have in training alone, in place."""
    if not hasattr(model, "aux_logits"):
        return
    for name in AUXILIARY_HEADS:
        if hasattr(model, name):
            setattr(model, name, None)
    setattr(model, "aux_logits", False)  # noqa: B010  (to the type checker all are modules)


def _explained(load: Callable[[nn.Module], None], name: str) -> Callable[[nn.Module], None]:
    """Turn whatever a download raises into one sentence with the remedy."""

    def load_or_explain(backbone: nn.Module) -> None:
        try:
            load(backbone)
        except Exception as error:  # hubs raise their own families: connection, HTTP, cache, value
            reason = str(error).strip().splitlines()
            raise DistillError(
                f"the pretrained weights of {name} could not be fetched "
                f"({reason[0] if reason else type(error).__name__}); connect to the network once, "
                "or give the file yourself (--teacher-weights or --student-weights)"
            ) from error

    return load_or_explain


def _near(name: str, known: list[str]) -> list[str]:
    """A few hundred names do not fit one sentence: keep those that look like `name`."""
    import difflib

    return difflib.get_close_matches(name, known, n=8, cutoff=0.4) or known[:8]


_LIBRARIES: dict[str, Callable[[str], NetworkSpec]] = {
    "timm": _timm_spec,
    "torchvision": _torchvision_spec,
}
