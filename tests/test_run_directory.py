import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from distill.config import flattened
from distill.errors import DistillError
from distill.run_directory import (
    RunDirectory,
    add_metrics,
    read_config,
    read_metrics,
    require_usable,
)
from distill.training.configuration import TrainConfig


@pytest.fixture
def run(tmp_path: Path):
    directory = RunDirectory(tmp_path / "runs" / "a", resume=False)
    directory.write_config(TrainConfig(), command="train")
    yield directory
    directory.close()


def test_the_configuration_comes_back_with_versions_beside_it(run: RunDirectory):
    assert read_config(run.path) == flattened(TrainConfig())
    stored = yaml.safe_load((run.path / "config.yaml").read_text())
    assert set(stored["versions"]) == {"distill", "torch", "torchvision", "python"}


def test_metrics_are_added_to_not_replaced(run: RunDirectory):
    run.add_metrics({"nn_accuracy": 0.5, "num_steps": 3})
    add_metrics(run.path, {"nn_accuracy": 0.75})
    assert json.loads((run.path / "metrics.json").read_text()) == {
        "nn_accuracy": 0.75,
        "num_steps": 3,
    }


def test_a_disk_that_refuses_leaves_configuration_and_numbers(run: RunDirectory, monkeypatch):
    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    run.add_metrics({"nn_accuracy": 0.5})
    names = ("config.yaml", "metrics.json")
    before = [(run.path / name).read_bytes() for name in names]
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        run.write_config(TrainConfig(), command="pretrain")
    with pytest.raises(OSError, match="No space left"):
        run.add_metrics({"nn_accuracy": 0.75})
    assert [(run.path / name).read_bytes() for name in names] == before


def test_numbers_that_two_write_together_are_all_there(tmp_path, monkeypatch):
    def slow(path: Path):
        found = read_metrics(path)
        time.sleep(0.05)
        return found

    monkeypatch.setattr("distill.run_directory.read_metrics", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: add_metrics(tmp_path, {f"m{i}": i}), range(4)))
    assert read_metrics(tmp_path) == {f"m{i}": i for i in range(4)}


def test_an_existing_run_is_refused_without_resume(run: RunDirectory):
    with pytest.raises(DistillError, match="holds a run already; continue it with --resume"):
        require_usable(run.path, resume=False)
    require_usable(run.path, resume=True)


def test_resume_needs_a_run(tmp_path: Path):
    with pytest.raises(DistillError, match="holds no run to resume"):
        require_usable(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_foreign_files_are_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DistillError, match="is not empty and holds no run"):
        require_usable(tmp_path, resume=False)
    with pytest.raises(DistillError, match="is a file; name a directory"):
        require_usable(tmp_path / "thesis.tex", resume=False)


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DistillError, match="cannot be made"):
        RunDirectory(tmp_path / "file" / "run", resume=False)


def test_another_process_is_kept_out(run: RunDirectory):
    code = (
        "import sys; from pathlib import Path\n"
        "from distill.run_directory import RunDirectory\n"
        "from distill.errors import DistillError\n"
        "try:\n    RunDirectory(Path(sys.argv[1]), resume=True)\n"
        "except DistillError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    busy = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "is in use by another process" in busy
    run.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_damaged_metrics_are_named(run: RunDirectory):
    for content in ("{", "[]", "3"):
        (run.path / "metrics.json").write_text(content)
        with pytest.raises(DistillError, match=r"metrics\.json is damaged"):
            read_metrics(run.path)


def test_a_number_that_is_none_goes(tmp_path):
    add_metrics(tmp_path, {"robustness_mce": 0.5, "nn_accuracy": 0.25})
    add_metrics(tmp_path, {"robustness_mce": None, "voc": {"cat": None}})
    assert read_metrics(tmp_path) == {"nn_accuracy": 0.25, "voc": {"cat": None}}
