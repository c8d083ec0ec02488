"""Reports from the command line, on folders of a few small images."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill
from distill.cli.main import run
from distill.data.sources import open_images
from distill.embeddings.store import EmbeddingStore
from distill.models.networks import wrap_module
from distill.models.weights import save_network
from distill.reports import report as report_job
from students.registry import build_student

TINY = ["--student", "timm:test_resnet", "--image-size", "32", "--num-workers", "0"]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains a tiny student on a folder for an epoch."""

    def make(data: Path, name: str = "run", *more: str) -> Path:
        output = tmp_path / name
        argv = ["--teacher", "pixels", *TINY, "--data", str(data), "--output", str(output)]
        assert run([*argv, "--batch-size", "8", "--epochs", "1", *more]) == 0
        return output

    return make


def sections(page: str) -> dict[str, str]:
    """Return the HTML of every section by its name."""
    found = re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', page, re.DOTALL)
    return dict(found)


def test_a_report_of_a_run_has_every_section(make_folder, train, capsys, tmp_path):
    data = make_folder()
    (data / "train" / "class1").rename(data / "train" / "<script>alert(1)<")
    (data / "val" / "class1").rename(data / "val" / "<script>alert(1)<")
    path = train(data)
    metrics = (path / "metrics.json").read_text()
    assert run(["report", str(path), "--num-workers", "0"]) == 0
    assert re.search(r"the report is in .*run/report.html \(\d\.\d MiB\)", capsys.readouterr().out)
    page = (path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    found = sections(page)
    assert list(found) == ["summary", "training", "neighbors", "clusters", "map"]
    assert "Left out" not in page
    assert 'class="left-out"' not in page
    assert found["neighbors"].count(">teacher</h4>") == found["neighbors"].count(">student</h4>")
    assert found["neighbors"].count('class="query"') >= 8
    assert "of photos/val with their nearest of 36 images of photos/train" in found["neighbors"]
    assert "<code>nn_accuracy</code><small>share of the validation" in found["summary"]
    assert "Loss" in found["training"]
    assert "in 3 clusters" in found["clusters"]
    assert "12 points of 3 classes" in found["map"]
    assert (path / "metrics.json").read_text() == metrics  # a report measures nothing anew


def test_images_without_labels(make_folder, train, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(make_folder() / "train" / "class0", flat)
    path = train(flat)
    assert run(["report", str(path), "--num-workers", "0"]) == 0
    found = sections((path / "report.html").read_text())
    assert "Left out: the images of flat have no labels" in found["clusters"]
    assert "Left out: flat has no validation images" in found["summary"]
    assert "000.png" in found["neighbors"]
    assert "✓" not in found["neighbors"]
    assert ">teacher</h4>" in found["neighbors"]
    assert "12 points;" in found["map"]


def test_a_teacher_that_is_not_at_hand_is_left_out(make_folder, train, cache):
    path = train(make_folder(), "run", "--teacher-cache", str(cache / "own"))

    def neighbors() -> str:
        assert run(["report", str(path), "--num-workers", "0"]) == 0
        return sections((path / "report.html").read_text())["neighbors"]

    shutil.rmtree(cache / "own" / "val")
    found = neighbors()
    assert "left out: its embeddings of the val images are not on this disk" in found
    assert ">teacher</h4>" not in found
    assert ">student</h4>" in found
    store = EmbeddingStore.find(cache / "own" / "train")
    store.unmark([0])
    assert "left out: its embeddings of the train images are not on this disk" in neighbors()
    assert not store.done().any()  # nothing was embedded
    config, text = path / "config.yaml", (path / "config.yaml").read_text()
    config.write_text(text.replace("teacher: pixels", "teacher: absent"))
    assert "left out: unknown teacher &#39;absent&#39;" in neighbors()
    config.write_text(text.replace("teacher_view: center", "teacher_view: student"))
    assert "left out: the teacher embedded the student" in neighbors()


def test_large_data_are_sampled(make_folder, train, tmp_path):
    path, output = train(make_folder()), tmp_path / "small.html"
    (tmp_path / "names.txt").write_text("class0 goldfish\n")
    argv = ["report", str(path), "--num-images", "10", "--output", str(output)]
    argv += ["--class-names", str(tmp_path / "names.txt")]
    assert run([*argv, "--num-workers", "0", "--seed", "1"]) == 0
    found = sections(output.read_text())
    assert "10 images of photos/train" in found["neighbors"]
    assert "10 images of photos/train" in found["clusters"]
    assert "10 images of photos/val" in found["map"]
    for name in ("neighbors", "clusters", "map"):
        assert "goldfish" in found[name]
        assert "class0" not in found[name]
    assert not (path / "report.html").exists()


def test_a_run_that_has_not_finished_and_runs_of_your_own_objects(make_folder, train):
    path = train(make_folder())
    weights = path / "student.safetensors"
    weights.unlink()
    config = path / "config.yaml"
    reasons = ("the run has not finished", "the network is a module of", "the images are a dataset")
    for reason in reasons:
        if "module" in reason:
            save_network(wrap_module(torch.nn.Flatten(), image_size=32), weights)
        elif "images" in reason:
            save_network(build_student("timm:test_resnet", image_size=32), weights)
            config.write_text(re.sub("data: .*", "data: dataset:me.Photos", config.read_text()))
        assert run(["report", str(path)]) == 0
        found = sections((path / "report.html").read_text())
        for name in ("neighbors", "clusters", "map"):
            assert f"Left out: {reason}" in found[name]
        assert "Loss" in found["training"]


def test_several_runs_are_compared(make_folder, train, tmp_path, monkeypatch):
    data = make_folder()
    first, second = train(data), train(data, "other", "--seed", "1")
    third = tmp_path / "elsewhere" / "run"
    shutil.copytree(first, third)
    monkeypatch.chdir(tmp_path)
    written = distill.report(first, second, third)
    assert written == Path("report.html")
    page = written.read_text()
    assert list(sections(page)) == ["numbers", "curves", "differences"]
    assert page.count("<code>nn_accuracy</code>") == 1
    assert ">other</th>" in page
    assert f">{first}</th>" in page  # two are called run
    assert f">{third}</th>" in page
    assert re.search(r'<th scope="row">seed</th>\s*<td class="long">0</td>', page)


def test_a_report_of_pre_training(make_pretraining_run, monkeypatch):
    digits = open_images("digits")
    few = replace(digits, train=digits.val)
    monkeypatch.setattr("distill.evaluation.base.open_images", lambda spec: few)
    path = make_pretraining_run()
    assert distill.report(path, num_workers=0) == path / "report.html"
    found = sections((path / "report.html").read_text())
    assert "left out: the run has no teacher." in found["neighbors"]
    assert "in 10 clusters" in found["clusters"]
    assert "Left out: the run has logged no step yet." in found["training"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no run to report on"),
        (["{empty}"], "is not a run directory"),
        (["{run}", "--num-images", "1"], "--num-images is 1"),
        (["{run}", "--seed", "-1"], "--seed is -1"),
        (["{run}", "--output", "{empty}"], "is a folder"),
        (["{run}", "--output", "{empty}/absent/x.html"], "a folder that does not exist"),
        (["{run}", "--data", "no/such/folder"], "no such folder"),
    ],
)
def test_mistakes_are_one_sentence(make_pretraining_run, tmp_path, capsys, argv, words):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "run": make_pretraining_run()}
    assert run(["report", *(word.format(**places) for word in argv)]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
    assert not (places["run"] / "report.html").exists()


def test_a_file_that_cannot_be_written(make_pretraining_run, tmp_path, monkeypatch, capsys):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report_job, "atomic_write", refuse)
    path = make_pretraining_run()
    (path / "backbone.safetensors").unlink()
    assert run(["report", str(path)]) == 2
    assert "cannot be written: Permission denied; name another file" in capsys.readouterr().err
