import json
import re
import shlex
from pathlib import Path

import pytest

from distill.cli.main import run as command_line
from distill.config import updated
from distill.errors import DistillError
from distill.evaluation.corruption import RobustnessRecord
from distill.reports.run_facts import read_run
from distill.run_directory import RunDirectory
from distill.training.configuration import TrainConfig


@pytest.fixture
def written(tmp_path: Path, make_folder) -> Path:
    """Return a run directory with a configuration and nothing else."""
    given = {
        "teacher": "pixels",
        "student": "resnet18",
        "data": str(make_folder("my photos", num_train=2, num_val=0)),
        "image_size": 64,
        "epochs": 3,
        "mask_self": False,
        "milestones": [5, 7],
        "output": str(tmp_path / "run"),
    }
    directory = RunDirectory(tmp_path / "run", resume=False)
    config = updated(TrainConfig(), given, source="the test")
    directory.write_config(config, command="train", fingerprints={"train": "12ab"})
    directory.close()
    return directory.path


def log(run: Path, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (run / "log.jsonl").write_text(text)


def test_facts_and_options(written):
    (written / "metrics.json").write_text('{"nn_accuracy": 0.5, "train_seconds": 3725}')
    found = read_run(written)
    assert found.name == "run"
    assert found.facts["Student"] == "resnet18, 64 px"
    assert found.facts["Teacher"] == "pixels"
    assert found.facts["Method"] == "CompRess, one-queue"
    assert found.facts["Training took"] == "1 h 2 min"
    assert "torch 2" in found.facts["Versions"]
    assert found.options["milestones"] == "5, 7"
    assert found.options["student_weights"] == "none"
    assert found.metrics["nn_accuracy"] == 0.5
    assert found.curves == ()
    assert found.robustness is None
    assert not {"fingerprints", "versions", "command"} & found.options.keys()
    assert "fingerprint" not in found.command


def test_the_command_gives_the_same_options_again(written, capsys):
    found = read_run(written)
    data = found.options["data"]
    assert found.command == (
        f"distill train --teacher pixels --student resnet18 --data '{data}' --image-size 64 "
        "--no-mask-self --epochs 3 --milestones 5 7"
    )
    assert command_line([*shlex.split(found.command)[1:], "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "mask_self: false" in printed
    assert data in " ".join(printed.split())


def test_curves_are_read_up_to_a_line_that_is_not_whole(written):
    log(
        written,
        {"step": 0, "event": "filling"},
        {"step": 1, "loss": 3.0, "learning_rate": 0.1},
        {"step": 10, "loss": 2.0, "learning_rate": 0.2},
        {"step": 12, "event": "epoch", "loss": 1.9, "holdout_nn_accuracy": 0.75},
        {"loss": 9.0},
        '{"step": 20, "lo',
        {"step": 30, "loss": 1.0},
    )
    loss, rate, held_out = read_run(written).curves
    assert (loss.title, loss.is_share) == ("Loss", False)
    assert (list(loss.series[0].x), list(loss.series[0].y)) == ([1, 10], [3.0, 2.0])
    assert list(rate.series[0].y) == [0.1, 0.2]
    assert held_out.is_share
    assert (list(held_out.series[0].x), list(held_out.series[0].y)) == ([12], [0.75])


def test_robustness_is_the_mean_over_corruptions_by_severity(written):
    settings = [{"images": "old"}, {"images": "new"}]
    for setting, clean in zip(settings, (0.9, 0.1), strict=True):
        record = RobustnessRecord(written, "student", setting)
        for severity, errors in ((1, (0.1, 0.3)), (2, (0.2, 0.4))):
            for name, error in zip(("fog", "snow"), errors, strict=True):
                record.set(name, severity, error)
        record.set_clean(clean)
    teacher = RobustnessRecord(written, "teacher", {})
    teacher.set("fog", 1, 0.05)
    found = read_run(written).robustness
    assert [series.name for series in found.series] == ["student", "teacher"]
    assert list(found.series[0].x) == [0, 1, 2]  # 0: the clean images of the newest setting
    assert list(found.series[0].y) == pytest.approx([0.1, 0.2, 0.3])
    assert list(found.series[1].x) == [1]
    assert found.is_share


def test_corruptions_at_unlike_severities_have_no_mean(written):
    record = RobustnessRecord(written, "student", {})
    record.set("fog", 1, 0.1)
    record.set("snow", 2, 0.1)
    assert read_run(written).robustness is None


def test_pre_training_and_commands_that_are_not_known(make_pretraining_run):
    path = make_pretraining_run()
    found = read_run(path)
    assert found.facts["Method"] == "c-byol"
    assert "Teacher" not in found.facts
    assert found.facts["Network"].endswith(", 16 px")
    assert found.command.startswith("distill pretrain --arch resnet18 --width 0.125")
    assert " --method c-byol " in found.command
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("command: pretrain", "command: other"))
    assert read_run(path).command is None


@pytest.mark.parametrize("name", ["metrics.json", "robustness.json", "config.yaml"])
def test_damaged_files_are_named(written, name):
    content = "versions: [1]\n" if name == "config.yaml" else "{"
    (written / name).write_text(content)
    with pytest.raises(DistillError, match=f"{name} is damaged"):
        read_run(written)


def test_a_duration_that_is_none_and_other_methods(written):
    (written / "metrics.json").write_text('{"train_seconds": Infinity}')
    config = written / "config.yaml"
    for method in ("crd", "of-a-plugin"):
        config.write_text(re.sub("\nmethod: .*", f"\nmethod: {method}", config.read_text()))
        content = read_run(written)
        assert content.facts["Method"] == method
        assert f"--method {method}" in content.command
        assert ("--no-mask-self" in content.command) == (method == "of-a-plugin")
    assert content.facts["Training took"] == "an unknown time"
