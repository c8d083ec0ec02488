from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from annotated_types import Gt, Le

from distill.config import (
    as_options,
    check_options,
    flattened,
    option_names,
    read_yaml,
    to_yaml,
    updated,
)
from distill.errors import DistillError
from distill.evaluation.linear import Linear
from distill.exports.export import ExportOptions
from distill.losses import METHODS
from distill.recipes import recipe_names
from distill.training.configuration import TrainConfig, check, load_recipe, with_options


def options_of(**options) -> TrainConfig:
    return with_options(TrainConfig(), {"teacher": "t", "student": "s", **options}, source="test")


def test_a_configuration_survives_yaml():
    config = options_of(output="runs/a", milestones=[1, 2], learning_rate=0.5, mask_self=False)
    again = updated(TrainConfig(), yaml.safe_load(to_yaml(config)), source="test")
    assert again == config
    assert config.run.output == Path("runs/a")
    assert config.optimization.milestones == (1, 2)


def test_options_of_one_group_by_name():
    given = {"output": "a/b", "layers": ["x"], "learning-rates": [1, "1e-2"], "cache": None}
    found = as_options(Linear.Options, given, source="test")
    assert found == Linear.Options(
        output=Path("a/b"), layers=("x",), learning_rates=(1.0, 0.01), cache=None
    )
    for options, message in (
        ({"sweeps": True}, "test has an unknown option 'sweeps'; did you mean 'sweep'"),
        ({"on_bad_image": "skp"}, "on_bad_image the value 'skp'; allowed: fail, skip"),
        ({"layers": [1]}, "layers the value \\[1\\]; allowed: a list of texts"),
        ({"learning_rates": 0.1}, "allowed: a list of numbers"),
    ):
        with pytest.raises(DistillError, match=message):
            as_options(Linear.Options, options, source="test")
    with pytest.raises(DistillError, match="test needs format"):
        as_options(ExportOptions, {"overwrite": True}, source="test")


def test_names_are_unique_across_groups():
    assert (
        len(option_names(TrainConfig()))
        == len(set(option_names(TrainConfig())))
        == len(flattened(TrainConfig()))
    )


def test_hyphens_and_underscores_are_the_same():
    assert options_of(**{"image-size": 64}) == options_of(image_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imagesize": 64}, "unknown option 'imagesize'; did you mean 'image_size'"),
        ({"image_size": "big"}, "image_size the value 'big'; allowed: a whole number, null"),
        ({"image_size": 64.0}, "allowed: a whole number"),
        ({"image_size": True}, "allowed: a whole number"),
        ({"variant": "3q"}, "allowed: two-queue-momentum, two-queue, one-queue"),
        ({"augmentation": "flip"}, "allowed: crop-flip, crop, none, null"),
        ({"milestones": [1, "x"]}, "allowed: a list of whole numbers"),
        ({"learning_rate": "fast"}, "allowed: a number, null"),
        ({"learning_rate": 10**400}, "allowed: a number, null"),
        ({"mask_self": "yes"}, "allowed: true, false"),
    ],
)
def test_wrong_names_and_values_are_refused(options, message):
    with pytest.raises(DistillError, match=message):
        options_of(**options)


def test_yaml_exponents_are_numbers(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("learning_rate: 1e-3\nweight_decay: 0\n")
    config = load_recipe(str(tmp_path / "r.yaml"))
    assert config.optimization.learning_rate == 1e-3
    assert isinstance(config.optimization.weight_decay, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- a", "must be a mapping"), ("", "must be a mapping")],
)
def test_unreadable_yaml_is_one_sentence(tmp_path: Path, text: str, message: str):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(DistillError, match=message):
        read_yaml(tmp_path / "r.yaml", kind="recipe")
    with pytest.raises(DistillError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml", kind="recipe")


def test_yaml_runs_no_code(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("data: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(DistillError, match="not valid YAML"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_published_recipe_is_the_papers():
    config = load_recipe("published")
    assert config.loss.variant == "two-queue-momentum"
    assert (config.loss.queue_size, config.loss.queue_init) == (128_000, "random")
    assert (config.loss.temperature, config.loss.momentum) == (0.04, 0.999)
    optimization = config.optimization
    assert (optimization.optimizer, optimization.learning_rate) == ("sgd", 0.01)
    assert (optimization.sgd_momentum, optimization.weight_decay) == (0.9, 1e-4)
    assert (optimization.batch_size, optimization.epochs) == (256, 130)
    assert (optimization.milestones, optimization.decay_factor) == ((90, 120), 0.2)
    assert (config.images.image_size, config.views.augmentation) == (224, "crop-flip")


def test_recipes_by_name():
    baselines = {name for name, _ in METHODS.items()} - {"compress"}
    assert set(recipe_names("train")) == {"default", "published"} | baselines
    for name in baselines:
        config = load_recipe(name)
        assert config.method.method == name
        check(updated(config, {"teacher": "t", "student": "s"}, source="test"))
    assert load_recipe("default").run.recipe == "default"
    with pytest.raises(DistillError, match=r"unknown recipe 'publishd': did you mean 'published'"):
        load_recipe("publishd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"momentum": 0.9, "variant": "two-queue"},
            "--momentum 0.9 goes with --variant two-queue-mo",
        ),
        ({"teacher_view": "student", "teacher_image_size": 64}, "--teacher-image-size goes with"),
        ({"resume": True}, "--resume needs --output"),
        ({"method": "simregg"}, "unknown method 'simregg': did you mean 'simreg'"),
        (
            {"method": "simreg", "variant": "two-queue", "num_clusters": 3},
            "--variant goes with --method compress, not with simreg; leave it out; "
            "--num-clusters goes with --method clusterfit, not with simreg",
        ),
        (
            {"loss_weight": 2.0},
            "--loss-weight goes with --method cc, .* or supervised, not with compress",
        ),
        ({"method": "crd", "student_temperature": 0.2}, "--student-temperature goes with"),
        ({"method": "seed", "momentum": 0.9}, "--momentum goes with --method compress, not with"),
        ({"method": "reg", "student_crops": 2}, "--student-crops 2 goes with --method compress"),
        (
            {"method": "clusterfit", "teacher_view": "student"},
            "--teacher-view student does not go with --method clusterfit, which clusters",
        ),
        (
            {"method": "supervised", "teacher_view": "student"},
            "--teacher-view student does not go with --method supervised, which needs no teacher",
        ),
        ({"method": "reg", "teacher": None}, "--teacher is missing"),
        (
            {"epochs": 2, "warmup_epochs": 3},
            "--warmup-epochs is 3.0, it must be less than --epochs 2",
        ),
        ({"teacher": None}, "--teacher is missing"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(DistillError, match=message):
        check(options_of(**options))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rate", float("nan"), "it must be positive and finite"),
        ("learning_rate", float("inf"), "it must be positive and finite"),
        ("learning_rate", 0.0, "it must be positive and finite"),
        ("weight_decay", -1.0, "it must be at least 0 and finite"),
        ("sgd_momentum", 1.0, "it must be at least 0 and below 1"),
        ("holdout", 0.9, "it must be between 0 and 0.5"),
        ("epochs", 0, "it must be at least 1"),
        ("batch_size", 1, "it must be at least 2 (BatchNorm needs two images)"),
        ("nn_every", -1, "it must be at least 0"),
        ("seed", 2**63, "it must be between 0 and 9,223,372,036,854,775,807"),
    ],
)
def test_values_out_of_range_name_the_range(name, value, allowed):
    with pytest.raises(DistillError) as caught:
        options_of(**{name: value})
    assert str(caught.value) == f"test gives {name} the value {value}, {allowed}"
    config = options_of()
    group = next(one for one in vars(config) if hasattr(getattr(config, one), name))
    parsed = replace(config, **{group: replace(getattr(config, group), **{name: value})})
    with pytest.raises(DistillError) as caught:
        check_options(parsed)
    assert str(caught.value) == f"--{name.replace('_', '-')} is {value}, {allowed}"


def test_each_of_a_list_has_the_range():
    @dataclass(frozen=True)
    class Options:
        rates: tuple[Annotated[float, Gt(0), Le(3)], ...] = (1.0,)

    with pytest.raises(DistillError, match=r"each must be positive and at most 3"):
        as_options(Options, {"rates": [1, 0]}, source="test")


def test_all_problems_are_said_at_once():
    problems = r"test gives epochs the value 0.*; test gives seed the value -1"
    with pytest.raises(DistillError, match=problems) as caught:
        options_of(epochs=0, seed=-1)
    assert "\n" not in str(caught.value)
    check(options_of())
