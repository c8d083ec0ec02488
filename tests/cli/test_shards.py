"""Training from tar shards: like from a folder, and resumed at the very image."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch

from distill.cli.main import run
from distill.models.weights import read_state_dict

TINY = ["--teacher", "pixels", "--student", "timm:test_resnet", "--image-size", "32"]
TINY += ["--batch-size", "8", "--epochs", "2", "--log-every", "1", "--holdout", "0"]


@pytest.fixture
def make_shards(make_folder, tmp_path):
    """Return a function that writes a folder's images as shards of five, and returns theirs."""

    def make() -> Path:
        folder, output = make_folder(), tmp_path / "shards"
        output.mkdir()
        for split in ("train", "val"):
            files = sorted((folder / split).rglob("*.png"))
            for start in range(0, len(files), 5):
                with tarfile.open(output / f"{split}-{start // 5:03d}.tar", "w") as archive:
                    for file in files[start : start + 5]:
                        key = f"{file.parent.name}-{file.stem}"
                        archive.add(file, f"{key}.png")
                        label = tmp_path / f"{key}.cls"
                        label.write_text(file.parent.name[-1])
                        archive.add(label, label.name)
        return output

    return make


def trained(output: Path) -> dict[str, torch.Tensor]:
    return read_state_dict(output / "student.safetensors")


def test_shards_teach_what_their_folder_teaches(make_shards, tmp_path):
    shards = make_shards()
    for name, data in (("folder", tmp_path / "photos"), ("shards", shards)):
        argv = [*TINY, "--num-workers", "0", "--data", str(data)]
        assert run([*argv, "--output", str(tmp_path / "runs" / name)]) == 0
    outputs = [tmp_path / "runs" / name for name in ("folder", "shards")]
    one, other = map(trained, outputs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    metrics = [json.loads((output / "metrics.json").read_text()) for output in outputs]
    assert metrics[0]["nn_accuracy"] == metrics[1]["nn_accuracy"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stopped_run_goes_on_at_the_very_image(
    make_shards, tmp_path, stop_after, monkeypatch, workers
):
    argv = [*TINY, "--num-workers", workers, "--data", str(make_shards())]
    assert run([*argv, "--output", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run([*argv, "--output", str(tmp_path / "parts")]) == 143
    assert run(["--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_shards_that_are_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*TINY, "--data", "absent-{000..003}.tar"]) == 2
    assert "absent-000.tar cannot be read" in capsys.readouterr().err
    assert run([*TINY, "--data", "s3x://bucket/set"]) == 2
    assert "s3x://bucket/set" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs"))
