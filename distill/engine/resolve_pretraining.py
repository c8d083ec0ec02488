"""Fills in the options of pre-training that follow method and data.

Published figures (Lee et al., Compressive Visual Representations, NeurIPS 2021) are kept where
they carry over: concentrations, regression weight, LARS rates. What a small set needs otherwise
(momentum of the target, batch size) is derived as for distillation.
"""

from __future__ import annotations

import math
from dataclasses import replace

from distill.config import OptimizationOptions
from distill.engine.resolve import (
    DataFacts,
    default_momentum,
    either,
    given,
    resolve_images,
    resolve_optimization,
    resolve_run,
)
from distill.pretrain_config import (
    COMPRESSING,
    WITH_TARGET,
    PretrainConfig,
    PretrainMethodOptions,
)

LONG_RUN = 1000  # epochs; from here on the published settings of the long runs hold
KAPPA_E = {"c-simclr": 1024.0, "c-byol": 16384.0}
# LARS rate per 256 images, short and long runs.
_LARS_RATES = {"c-byol": (0.35, 0.25)}
_OTHER_LARS_RATES = (0.3, 0.2)
_REGRESSION_WEIGHTS = (5.0, 2.0)
_TARGET_MOMENTA = (0.99, 0.996)
# AdamW must raise the gammas that start at zero within the run: they move by a rate at a time. On
# small sets more steps did more than more negatives.
_OTHER_RATES = {"sgd": 0.1, "adamw": 6e-3, "muon": 1e-3}
_MIN_STEPS = 128


def resolve_pretraining(config: PretrainConfig, facts: DataFacts) -> PretrainConfig:
    """Return `config` with every option that follows method and data filled in."""
    optimization = _resolve_optimization(config, facts.num_images)
    epochs, batch_size = given(optimization.epochs), given(optimization.batch_size)
    images = resolve_images(config.images, facts)
    small = given(images.image_size) < 64
    return replace(
        config,
        backbone=replace(
            config.backbone, stem=either(config.backbone.stem, "small" if small else "imagenet")
        ),
        images=images,
        views=replace(
            config.views, augmentation=either(config.views.augmentation, facts.augmentation)
        ),
        method=_resolve_method(
            config.method, epochs, num_steps=epochs * max(1, facts.num_images // batch_size)
        ),
        optimization=optimization,
        run=resolve_run(config.run, epochs),
    )


def _resolve_optimization(config: PretrainConfig, num_images: int) -> OptimizationOptions:
    epochs = either(config.optimization.epochs, 100 if num_images >= 5_000 else 200)
    lars = _LARS_RATES.get(config.method.method, _OTHER_LARS_RATES)[_is_long(epochs)]
    return resolve_optimization(
        replace(config.optimization, epochs=epochs),
        num_images,
        peaks={**_OTHER_RATES, "lars": lars},
        min_steps=_MIN_STEPS,
    )


def _resolve_method(
    options: PretrainMethodOptions, epochs: int, *, num_steps: int
) -> PretrainMethodOptions:
    compresses, has_target = options.method in COMPRESSING, options.method in WITH_TARGET
    momentum = default_momentum(num_steps, published=_TARGET_MOMENTA[_is_long(epochs)])
    weight = _REGRESSION_WEIGHTS[_is_long(epochs)]
    return replace(
        options,
        beta=either(options.beta, 1.0) if compresses else None,
        beta_epochs=either(options.beta_epochs, math.ceil(epochs / 10)) if compresses else None,
        kappa_e=either(options.kappa_e, KAPPA_E[options.method]) if compresses else None,
        regression_weight=either(options.regression_weight, weight) if has_target else None,
        target_momentum=either(options.target_momentum, momentum) if has_target else None,
    )


def _is_long(epochs: int) -> bool:
    return epochs >= LONG_RUN
