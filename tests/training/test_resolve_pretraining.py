import pytest

from distill.config import flattened
from distill.training.configuration import DataFacts, load_recipe, resolve_pretraining, with_options

IMAGENET = DataFacts(1_281_167, None, "photo", 1, 8)
SMALL = DataFacts(8_996, None, "photo", 1, 2)
DIGITS = DataFacts(1_365, 8, "glyph", 1, 0)


def resolved(facts: DataFacts, *, recipe: str = "default", **options):
    config = with_options(load_recipe(recipe, "pretrain"), options, source="test")
    return flattened(resolve_pretraining(config, facts))


@pytest.mark.parametrize("method", ["simclr", "c-simclr", "byol", "c-byol"])
def test_nothing_follows_the_data_afterwards(method):
    left = {name for name, value in resolved(SMALL, method=method).items() if value is None}
    assert left == {"data", "output", "clip_grad_norm", "max_bad_images"}


@pytest.mark.parametrize(
    ("epochs", "method", "rate", "decay", "momentum", "weight"),
    [
        (300, "c-byol", 0.35, 1e-6, 0.99, 5),
        (1000, "c-byol", 0.25, 1.5e-6, 0.996, 2),
        (300, "byol", 0.3, 1e-6, 0.99, 5),
        (1000, "byol", 0.2, 1.5e-6, 0.996, 2),
        (300, "simclr", 0.3, 1e-6, None, None),
        (1000, "c-simclr", 0.2, 1.5e-6, None, None),
    ],
)
def test_published_settings(epochs, method, rate, decay, momentum, weight):
    config = resolved(IMAGENET, recipe=f"published-{epochs}", method=method)
    assert config["epochs"] == epochs
    assert config["optimizer"] == "lars"
    assert config["learning_rate"] == pytest.approx(rate * 4096 / 256)
    assert config["weight_decay"] == decay
    assert (config.get("target_momentum"), config.get("regression_weight")) == (momentum, weight)
    assert config["warmup_epochs"] == 10
    assert config.get("backward_encoder") == ("same-view" if method == "c-byol" else None)
    kappas = {"c-simclr": 1024, "c-byol": 16384}
    assert config.get("kappa_e") == kappas.get(method)


def test_small_sets_get_a_faster_target_and_small_images_another_stem():
    assert 0.9 < resolved(SMALL, method="byol", epochs=5)["target_momentum"] < 0.99
    assert resolved(SMALL, image_size=64)["stem"] == "imagenet"
    digits = resolved(DIGITS)
    assert (digits["stem"], digits["image_size"]) == ("small", 32)
    assert digits["augmentation"] == "glyph"
