"""A run again: the same bits, or what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from distill.cli.main import run
from distill.models.weights import read_state_dict

TINY = ["--image-size", "32", "--num-workers", "0", "--batch-size", "8", "--epochs", "2"]


def trained(make_folder, tmp_path: Path, *flags: str) -> Path:
    output = tmp_path / "first"
    argv = ["--teacher", "pixels", "--student", "timm:test_resnet", *TINY, *flags]
    assert run([*argv, "--data", str(make_folder()), "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("flags", [[], ["--deterministic"], ["--method", "crd"]])
def test_a_run_again_has_the_same_bits(make_folder, tmp_path, capsys, flags):
    first = trained(make_folder, tmp_path, *flags)
    capsys.readouterr()
    assert run(["rerun", str(first)]) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "first-rerun"
    assert f"weights: the same, bit for bit; {again}" in printed
    assert "nn_accuracy" in printed
    one, other = (read_state_dict(path / "student.safetensors") for path in (first, again))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_run_again_without_the_file_of_its_recipe(make_folder, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("temperature: 0.1\n")
    first = trained(make_folder, tmp_path, "--recipe", str(recipe))
    recipe.unlink()
    assert run(["rerun", str(first)]) == 0
    configs = [
        yaml.safe_load((path / "config.yaml").read_text())
        for path in (first, tmp_path / "first-rerun")
    ]
    assert {config["temperature"] for config in configs} == {0.1}
    assert {config["recipe"] for config in configs} == {str(recipe)}


def test_a_pretraining_run_again(make_folder, tmp_path, capsys):
    first = tmp_path / "first"
    argv = ["pretrain", "--method", "c-byol", "--width", "0.125", *TINY]
    assert run([*argv, "--data", str(make_folder()), "--output", str(first)]) == 0
    assert run(["rerun", str(first), "--output", str(tmp_path / "again")]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def change(first: Path, **options) -> None:
    """Let a run say that it was made with other options."""
    file = first / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **options}))


def test_another_result_is_told(make_folder, tmp_path, capsys):
    first = trained(make_folder, tmp_path)
    change(first, seed=1, versions={"torch": "1.0"})
    metrics = json.loads((first / "metrics.json").read_text())
    (first / "metrics.json").write_text(json.dumps({**metrics, "nn_accuracy": 0.5}))
    capsys.readouterr()
    assert run(["rerun", str(first)]) == 1
    printed = capsys.readouterr().out
    assert "torch was 1.0 and is" in printed
    assert "of their length apart" in printed
    assert "another result: a measure differs by more than --tolerance 0.02" in printed
    assert run(["rerun", str(first), "--output", str(tmp_path / "b"), "--tolerance", "0.6"]) == 0


def test_other_images_are_refused(make_folder, tmp_path, capsys):
    first, data = trained(make_folder, tmp_path), tmp_path / "photos"
    moved = data.rename(tmp_path / "elsewhere")
    assert run(["rerun", str(first)]) == 2
    assert "photos" in capsys.readouterr().err
    Image.new("RGB", (24, 24)).save(moved / "val" / "class1" / "001.png")
    assert run(["rerun", str(first), "--data", str(moved)]) == 2
    assert "the images of val are not those that" in capsys.readouterr().err
    assert not (tmp_path / "first-rerun").exists()


def test_a_run_that_is_not_finished_is_refused(make_folder, tmp_path, capsys):
    first = trained(make_folder, tmp_path)
    (first / "student.safetensors").unlink()
    assert run(["rerun", str(first)]) == 2
    error = capsys.readouterr().err
    assert f"finish it with `distill train --output {first} --resume`" in error
    assert run(["rerun", str(tmp_path / "absent")]) == 2


def test_a_rerun_that_was_stopped_goes_on(make_folder, tmp_path, stop_after, monkeypatch, capsys):
    first = trained(make_folder, tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(["rerun", str(first)]) == 143
    assert run(["rerun", str(first)]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert run(["rerun", str(first), "--resume"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
