from dataclasses import replace

import pytest
import yaml

from distill.config import flattened
from distill.errors import DistillError
from distill.losses import METHODS
from distill.training.configuration import (
    DataFacts,
    TrainConfig,
    identity,
    load_recipe,
    require_same_run,
    resolve,
    with_options,
)

IMAGENET = DataFacts(1_281_167, None, "crop-flip", 1, 8)
SMALL = DataFacts(8_996, None, "crop-flip", 1, 2)
DIGITS = DataFacts(1_365, 8, "crop", 64, 0)


def resolved(
    facts: DataFacts,
    *,
    recipe: str = "default",
    projection: int | None = None,
    normalizes: bool = True,
    **options,
):
    asked = {"teacher": "t", "student": "s", **options}
    config = with_options(load_recipe(recipe), asked, source="test")
    return resolve(
        config,
        facts,
        teacher_dim=2048,
        student_normalizes=normalizes,
        published_projection_dim=projection,
    )


def test_nothing_follows_the_data_afterwards():
    left = {k for k, v in flattened(resolved(SMALL)).items() if v is None}
    may_stay = {"teacher_weights", "teacher_image_size", "teacher_batch_size", "student_weights"}
    may_stay |= {"data", "momentum", "clip_grad_norm", "output", "teacher_cache"}
    may_stay |= {"kappa_e", "kappa_b"}
    may_stay |= {"max_bad_images"}  # follows the images
    may_stay |= {"queue_size"}  # all images are anchors
    assert left == may_stay


FOLLOWED = {
    "reg": {"loss_weight": 1.0},
    "reg-bn": {"loss_weight": 1.0},
    "simreg": {"loss_weight": 1.0},
    "cc": {"loss_weight": 1.0},
    "cc-released": {"loss_weight": 1.0, "head_dim": 128},
    "crd": {
        **{"loss_weight": 1.0, "head_dim": 128, "memory_momentum": 0.5, "temperature": 0.07},
        "num_negatives": 8_995,
    },
    "rkd": {"loss_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
    "sp": {"loss_weight": 3000.0},
    "seed": {
        **{"loss_weight": 1.0, "temperature": 1e-4, "student_temperature": 0.2},
        "queue_size": 8_096,
    },
    "clusterfit": {"loss_weight": 1.0, "num_clusters": 112},
    "supervised": {"loss_weight": 1.0},
}


@pytest.mark.parametrize("method", FOLLOWED)
def test_a_method_s_own_options_are_filled_in_and_given_ones_stay(method):
    config = resolved(SMALL, method=method)
    found = vars(config.loss)
    assert {name: found[name] for name in FOLLOWED[method]} == FOLLOWED[method]
    assert type(config.loss) is METHODS.get(method).Options
    given = {
        name: value / 2 if isinstance(value, float) else value // 2
        for name, value in FOLLOWED[method].items()
    }
    config = resolved(SMALL, method=method, **given)
    assert {name: flattened(config)[name] for name in given} == given


def test_numbers_of_a_baseline_reach_the_published_ones():
    assert resolved(IMAGENET, method="crd").loss.num_negatives == 16_384
    assert resolved(IMAGENET, method="clusterfit").loss.num_clusters == 16_000
    assert resolved(IMAGENET, method="seed").loss.queue_size == 65_536
    tiny = DataFacts(30, 8, "crop", 1, 0)
    assert resolved(tiny, method="clusterfit").loss.num_clusters == 2


def test_the_published_recipe_stays_literal():
    literal = flattened(load_recipe("published"))
    for name, value in flattened(resolved(IMAGENET, recipe="published")).items():
        assert literal[name] is None or value == literal[name], name
    assert resolved(IMAGENET, recipe="published").loss.student_temperature == 0.04


def test_the_published_projection_belongs_to_the_published_recipe():
    assert resolved(IMAGENET, recipe="published", projection=8192).loss.projection_dim == 8192
    two_queues = resolved(SMALL, projection=8192, variant="two-queue")
    assert two_queues.loss.projection_dim == 0
    assert resolved(SMALL).loss.projection_dim == 2048  # one queue: the teacher's width


def test_regression_is_a_part_of_one_queue_alone():
    assert resolved(SMALL).loss.regression_share == 0.8
    assert resolved(SMALL, regression_share=0.0).loss.regression_share == 0
    assert resolved(SMALL, variant="two-queue").loss.regression_share == 0
    published = resolved(IMAGENET, recipe="published", variant="one-queue")
    assert published.loss.regression_share == 0


def test_concentrations_follow_the_price():
    method = resolved(SMALL, compression_beta=0.1, kappa_b=3.0).loss
    assert (method.kappa_e, method.kappa_b) == (1024, 3)


def test_the_queue_is_smaller_than_the_training_set():
    assert resolved(SMALL, anchors="queue").loss.queue_size == 8_096
    assert resolved(IMAGENET).loss.queue_size == 128_000


def test_a_bank_of_all_images_has_no_size_of_its_own():
    assert resolved(SMALL, anchors="dataset").loss.queue_size is None


@pytest.mark.parametrize(
    ("options", "anchors"),
    [
        ({}, "dataset"),
        ({"variant": "two-queue"}, "queue"),
        ({"teacher_view": "student"}, "queue"),
        ({"queue_size": 512}, "queue"),
        ({"queue_init": "random"}, "queue"),
        ({"variant": "two-queue", "anchors": "dataset"}, "dataset"),
    ],
)
def test_all_images_are_anchors_where_the_teachers_embeddings_are_at_hand(options, anchors):
    assert resolved(SMALL, **options).loss.anchors == anchors


def test_as_many_images_are_anchors_as_a_published_queue_holds():
    facts = replace(SMALL, num_images=128_000)
    assert resolved(facts).loss.anchors == "dataset"
    assert resolved(replace(facts, num_images=128_001)).loss.anchors == "queue"


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, "subtract"),
        ({"variant": "two-queue"}, "keep"),
        ({"teacher_view": "student"}, "keep"),
        ({"teacher_mean": "keep"}, "keep"),
        ({"variant": "two-queue", "teacher_mean": "subtract"}, "subtract"),
    ],
)
def test_the_teachers_mean_is_subtracted_where_it_is_known(options, mean):
    method = resolved(SMALL, **options).loss
    assert method.teacher_mean == mean
    expected = 0.07 if mean == "subtract" else 0.04
    assert (method.temperature, method.student_temperature) == (expected, expected)


def test_the_area_of_crops_follows_the_augmentation():
    assert resolved(IMAGENET).views.min_crop_area == 0.5
    assert resolved(DIGITS).views.min_crop_area == 0.6
    assert resolved(IMAGENET, augmentation="none").views.min_crop_area is None
    assert resolved(IMAGENET, min_crop_area=0.3).views.min_crop_area == 0.3


@pytest.mark.parametrize(
    ("epochs", "low", "high"), [(1, 0.8, 0.9), (10, 0.98, 0.99), (200, 0.99, 0.9995)]
)
def test_momentum_averages_over_a_tenth_of_the_run(epochs, low, high):
    momentum = resolved(SMALL, epochs=epochs, variant="two-queue-momentum").loss.momentum
    assert low < momentum < high
    assert resolved(SMALL, epochs=epochs, variant="two-queue").loss.momentum is None


def test_published_momentum_is_never_exceeded():
    assert resolved(IMAGENET, variant="two-queue-momentum").loss.momentum == 0.999


def test_batch_size_is_a_power_of_two_that_leaves_enough_steps():
    assert resolved(IMAGENET).optimization.batch_size == 256
    assert resolved(SMALL).optimization.batch_size == 128
    assert resolved(DIGITS).optimization.batch_size == 32


def test_image_size_respects_data_and_student():
    assert resolved(IMAGENET).images.image_size == 224
    assert resolved(DIGITS).images.image_size == 64  # AlexNet's floor
    assert resolved(DIGITS, image_size=96).images.image_size == 96


def test_learning_rate_scales_with_the_batch():
    def rate(optimizer: str, batch_size: int) -> float:
        config = resolved(IMAGENET, optimizer=optimizer, batch_size=batch_size)
        return config.optimization.learning_rate

    assert rate("sgd", 128) == rate("sgd", 256) / 2
    assert rate("adamw", 64) == rate("adamw", 256) / 2


@pytest.mark.parametrize(("optimizer", "times"), [("adamw", 3), ("sgd", 1)])
def test_steps_are_larger_where_layers_normalize(optimizer, times):
    normalized, plain = (
        resolved(IMAGENET, optimizer=optimizer, normalizes=normalizes).optimization.learning_rate
        for normalizes in (True, False)
    )
    assert normalized == pytest.approx(times * plain)


@pytest.mark.parametrize(
    ("options", "normalizes", "expected"),
    [
        ({}, True, "random"),
        ({}, False, "scaled"),
        ({"student_weights": "w.safetensors"}, False, "random"),
        ({"student_init": "random"}, False, "random"),
        ({"student_init": "scaled"}, True, "scaled"),
    ],
)
def test_students_without_normalization_start_scaled(options, normalizes, expected):
    networks = resolved(SMALL, normalizes=normalizes, **options).networks
    assert networks.student_init == expected


def test_given_values_stay():
    config = resolved(SMALL, epochs=7, queue_size=3, nn_every=0, projection_dim=5, num_workers=1)
    assert config.optimization.epochs == 7
    assert (config.loss.queue_size, config.loss.projection_dim) == (3, 5)
    assert (config.run.nn_every, config.images.num_workers) == (0, 1)
    assert isinstance(config, TrainConfig)


def test_a_run_of_an_earlier_release_has_the_same_options_in_its_own_spelling(tmp_path):
    config = TrainConfig()
    config = replace(config, run=replace(config.run, output=tmp_path))
    path = tmp_path / "config.yaml"
    stored = {"command": "train", **identity(config)}
    path.write_text(yaml.safe_dump({**stored, "teacher_view": "centre"}))
    require_same_run(config)
    path.write_text(yaml.safe_dump({**stored, "teacher_view": "random"}))
    with pytest.raises(DistillError, match="--teacher-view is random in the run and center was"):
        require_same_run(config)
