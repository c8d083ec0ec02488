"""`distill export`, from the run directory to files that other programs load."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import distill
from distill.cli.main import run
from distill.config import updated
from distill.errors import DistillError
from distill.exports import export as job
from distill.exports.formats import Onnx, PlainSafetensors, TorchExport
from distill.models.weights import save_network
from distill.run_directory import RunDirectory
from distill.training.configuration import TrainConfig
from students.registry import build_student

FORMATS = {
    "onnx": ["student.onnx"],
    "torch-export": ["student.pt2"],
    "safetensors": ["student-plain.safetensors", "student.safetensors"],
}


@pytest.fixture
def make_run(tmp_path: Path, make_folder) -> Callable[..., Path]:
    """Return a function that makes what a finished run of a tiny student leaves."""

    def make(name: str = "run", *, student: str = "timm:test_resnet", **options) -> Path:
        data = tmp_path / "photos"
        if not data.exists():
            make_folder("photos", num_val=5)
        given = {"teacher": "r50-swav", "student": student, "data": str(data), "image_size": 32}
        config = updated(TrainConfig(), {**given, **options}, source="the test")
        directory = RunDirectory(tmp_path / name, resume=False)
        directory.write_config(config, command="train")
        torch.manual_seed(len(name))
        network = build_student(student, image_size=config.images.image_size)
        save_network(network, directory.student)
        directory.add_metrics({"nn_accuracy": 0.5, "untrained_nn_accuracy": 0.25})
        directory.close()
        return directory.path

    return make


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(job, "_ROUNDS", (1, 1))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def snippets(card: str) -> list[str]:
    return [part.partition("```")[0] for part in card.split("```python\n")[1:]]


def test_every_format_as_the_card_says(make_run, tmp_path, monkeypatch, capsys):
    path = make_run()
    folder = path / "export"
    expected = ["export.json", "model-card.md"]
    for export_format, files in FORMATS.items():
        assert run(["export", str(path), "--format", export_format]) == 0
        expected += files
        assert names(folder) == sorted(expected)
        printed = capsys.readouterr().out
        for file in files:
            assert str(folder / file) in printed
        assert "ms/image in batches of 32" in printed
    card = (folder / "model-card.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["metrics"]) == ("unknown", ["accuracy"])
    assert "knowledge-distillation" in front["tags"]
    (metric,) = front["model-index"][0]["results"][0]["metrics"]
    assert (metric["name"], metric["value"]) == ("nn_accuracy", 0.5)
    for said in (
        "CC-BY-NC-4.0",
        "https://arxiv.org/abs/2006.09882",
        "class0, class1, class2",
        "float32 (B, 3, 32, 32)",
        "mean 0.5, 0.5, 0.5, standard deviation 0.5, 0.5, 0.5",  # timm's of test_resnet
        "shorter side resized to 34 px (bilinear",  # 32 / 0.95, timm's
        "## Limits",
        "onnxruntime 1.",
    ):
        assert said in card, said
    assert str(tmp_path) not in card
    record = json.loads((folder / "export.json").read_text())
    for artifact in record["artifacts"]:
        content = (folder / artifact["name"]).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(content).hexdigest()
        assert artifact["num_bytes"] == len(content)
        assert 0 <= artifact["relative_difference"] < 1e-4
        assert artifact["sha256"] in card
        assert f"{len(content):,}" in card
    monkeypatch.chdir(folder)
    pixels = torch.rand(4, 3, 32, 32)
    student = distill.load_student(path)
    embeddings = student(pixels)
    found = snippets(card)
    assert len(found) == 4
    for snippet in found:
        scope = {"pixels": pixels.numpy() if "onnx" in snippet else pixels}
        exec(snippet, scope)
        result = torch.as_tensor(scope["embeddings"])
        assert ((result - embeddings).norm(dim=1) / embeddings.norm(dim=1)).max() < 1e-5


def test_a_pre_trained_backbone_with_length_1_elsewhere(make_pretraining_run, tmp_path):
    path, there = make_pretraining_run(method="c-byol"), str(tmp_path / "there")
    done = distill.export(path, "torch-export", l2_normalize=True, output=there, timing=False)
    assert names(done.folder) == ["backbone.pt2", "export.json", "model-card.md"]
    assert not (path / "export").exists()
    card = done.card.read_text(encoding="utf-8")
    assert card.count("| yes |") == 1
    for said in ("pre-trained by C-BYOL", "arXiv 2109.12909", "self-supervised-learning"):
        assert said in card
    assert "Nothing was measured." in card
    assert "## Teacher" not in card
    (artifact,) = done.artifacts
    assert (artifact.milliseconds, artifact.l2_normalize) == ({}, True)
    rows = torch.export.load(done.folder / artifact.name).module()(torch.rand(3, 3, 16, 16))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    done = distill.export(path, "safetensors", timing=False)
    assert [each.name for each in done.artifacts] == ["backbone.safetensors"]  # no library has it


def test_images_to_compare_on(make_run, make_folder, monkeypatch, tmp_path):
    seen = []
    look = job.real_pixels

    def spy(images, spec, *, number):
        seen.append((images.name.rpartition("/")[2], number))
        return look(images, spec, number=number)

    monkeypatch.setattr(job, "real_pixels", spy)
    path, name = make_run(), "student.safetensors"
    folder = distill.export(path, "safetensors", timing=False).folder
    assert (folder / name).read_bytes() == (path / name).read_bytes()
    path = make_run("other", data=str(tmp_path / "gone"))
    with pytest.raises(DistillError, match=r"no such folder: .*gone; --data takes"):
        distill.export(path, "safetensors")
    other = str(make_folder("without", num_val=0, classes=2))
    done = distill.export(path, "safetensors", data=other, license="MIT", timing=False)
    assert seen == [("val", 12), ("train", 12)]
    card = done.card.read_text(encoding="utf-8")
    assert "| images | gone |" in card
    assert "class0" not in card  # the classes of other images
    assert "license: MIT" in card


def test_what_is_overwritten(make_run, capsys):
    path = make_run()
    argv = ["export", str(path), "--format", "safetensors", "--no-timing"]
    assert run(argv) == 0
    assert run(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*argv, "--overwrite"]) == 0
    file = path / "export" / "student-plain.safetensors"
    file.write_bytes(b"mine")
    assert run([*argv, "--overwrite"]) == 2
    assert file.read_bytes() == b"mine"
    other = make_run("other run")
    argv = ["export", str(other), "--format", "safetensors", "--output", str(path / "export")]
    assert run([*argv, "--overwrite"]) == 2
    assert "holds the export of other weights" in capsys.readouterr().err


def test_a_mismatch_leaves_nothing_behind(make_run, monkeypatch, capsys):
    path = make_run()
    load = TorchExport.load

    def off(self: TorchExport, file: Path):
        embed = load(self, file)
        return lambda pixels: embed(pixels) * 1.001

    monkeypatch.setattr(TorchExport, "load", off)
    before = names(path)
    assert run(["export", str(path), "--format", "torch-export"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: error: student.pt2 does not compute what the network")
    assert names(path) == before


def test_a_second_file_that_fails_takes_the_first_with_it(make_run, monkeypatch):
    path = make_run()

    def fail(*args: object) -> None:
        raise RuntimeError("no such operator\nand a trace")

    monkeypatch.setattr(PlainSafetensors, "load", fail)
    with pytest.raises(DistillError, match=r"as safetensors-plain \(no such operator\); try ano"):
        distill.export(path, "safetensors")
    assert not (path / "export").exists()


def test_names_from_data_stay_names(make_run, tmp_path):
    path = make_run(data=str(tmp_path / "<b>|`x`"))
    (tmp_path / "photos").rename(tmp_path / "<b>|`x`")
    for split in ("train", "val"):
        folder = tmp_path / "<b>|`x`" / split
        (folder / "class0").rename(folder / "[a](javascript:b)\n# c")
    card = distill.export(path, "safetensors", timing=False).card.read_text(encoding="utf-8")
    body = card.split("---", 2)[2]
    assert r"&lt;b&gt;\|\`x\`" in body
    assert "<b>" not in body
    assert r"\[a\](javascript\:b) \# c" in body
    assert "\n# c" not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "<b>|`x`"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "onx"], "unknown format 'onx': did you mean 'onnx'?"),
        (["--format", "safetensors", "--l2-normalize"], "--l2-normalize goes with --format onnx"),
        (["--format", "onnx", "--output", "RUN/config.yaml"], "config.yaml is a file"),
        (["--format", "onnx", "--data", "digit"], "did you mean 'digits'"),
    ],
)
def test_mistakes(make_run, tmp_path, capsys, flags, message):
    path = make_run()
    before = sorted(tmp_path.rglob("*"))
    assert run(["export", str(path), *(flag.replace("RUN", str(path)) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_cannot_be_exported(make_run, tmp_path, capsys, monkeypatch):
    path = make_run()
    (path / "student.safetensors").unlink()
    for argument, message in (
        (path, "it is written when a run ends: finish the run with"),
        (tmp_path / "absent", "is not a run directory"),
        (tmp_path / "photos", "is not a run directory"),
    ):
        assert run(["export", str(argument), "--format", "safetensors"]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(Onnx, "packages", ("onnxzzz",))
    assert run(["export", str(path), "--format", "onnx"]) == 2
    assert "pip install 'distill-vision[onnx]'" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(make_run, monkeypatch, capsys):
    path = make_run()

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert run(["export", str(path), "--format", "safetensors", "--no-timing"]) == 2
    assert "export cannot be written: No space left on device" in capsys.readouterr().err
    assert not (path / "export").exists()
