"""Where a configuration comes from: a recipe, or what `--resume` goes on with."""

from pathlib import Path

import pytest

from distill.config import flattened
from distill.errors import DistillError
from distill.training.configuration import (
    TrainConfig,
    check,
    configure,
    load_recipe,
    run_to_continue,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("command: train\nteacher: pixels\nepochs: 7\n")
    return folder


def test_a_run_is_continued_whatever_else_is_named(run):
    assert run_to_continue(run, ["output", "resume"]) == run
    assert run_to_continue(run, ["output", "resume", "teacher"]) == run
    assert run_to_continue(run, ["output", "teacher"]) is None
    assert run_to_continue(None, ["resume"]) is None


@pytest.mark.parametrize("name", ["teacher", "recipe", "method", "epochs"])
def test_a_command_that_names_what_to_train_begins_the_run(tmp_path, name):
    assert run_to_continue(tmp_path / "absent", ["output", "resume", name]) is None


@pytest.mark.parametrize("name", ["data", "device", "num_workers", "log_every"])
def test_one_that_does_not_is_refused(tmp_path, name):
    absent = tmp_path / "absent"
    assert run_to_continue(absent, ["output", "resume", name]) == absent
    with pytest.raises(DistillError, match="holds no run to resume; say what to train"):
        configure({"output": absent, "resume": True})


def test_options_of_the_run_are_the_defaults(run, tmp_path):
    assert configure({"output": run, "resume": True}).optimization.epochs == 7
    begun = configure({"output": tmp_path / "absent", "resume": True, "teacher": "pixels"})
    assert begun.optimization.epochs != 7
    assert configure({"output": run, "resume": False}).networks.teacher is None


@pytest.mark.parametrize(
    ("asked", "gone"),
    [
        ({"variant": "one-queue"}, {"momentum"}),
        ({"variant": "two-queue"}, {"momentum"}),
        ({"variant": "two-queue-momentum"}, set()),
        ({"anchors": "dataset"}, {"queue_size", "queue_init"}),
        ({"variant": "one-queue", "momentum": 0.5}, set()),
    ],
)
def test_what_goes_with_an_overridden_value_of_a_recipe_goes_with_it(asked, gone):
    config = configure({"recipe": "published", "teacher": "t", "student": "s", **asked})
    said, defaults = flattened(load_recipe("published")), flattened(TrainConfig())
    values = flattened(config)
    changed = {name for name in said if values[name] != {**said, **asked}.get(name)}
    assert changed - {"teacher", "student"} == gone
    assert all(values[name] == defaults[name] for name in gone)
    if "momentum" not in asked:
        check(config)
