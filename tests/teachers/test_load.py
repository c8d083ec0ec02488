"""Teachers by every name that a person may give: published, shipped, own, from a library."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config import ImageOptions
from distill.data.sources import open_images, training_images
from distill.errors import DistillError, UnknownNameError
from distill.evaluation.nn import nn_accuracy
from distill.models import download
from distill.models.download import Source
from distill.models.weights import save_network
from distill.training.setup import embedder_of
from students.registry import build_student
from teachers.load import load_teacher
from teachers.registry import SHIPPED, TEACHERS, teacher_spec
from teachers.resnet import build_resnet

ORACLES = Path(__file__).parents[1] / "oracles"
IMAGES = torch.rand(2, 3, 64, 64)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "RETRIES", download.RETRIES.new(backoff_factor=0))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path):
    """Serve a folder; yield the folder, its URL and the paths that were asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *args) -> None:
            asked.append(self.path)

        def log_message(self, *args) -> None:
            pass

    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


@pytest.fixture
def publish(monkeypatch):
    """Return a function that makes a published teacher small and lets it lie elsewhere.

    It returns random weights of the small network.
    """

    def publish(name: str, url: str, **known) -> dict[str, torch.Tensor]:
        spec = TEACHERS.get(name)
        pool = "same" if spec.layout.kind == "tensorflow" else "symmetric"
        build = partial(build_resnet, depth=50, width=0.125, pool=pool)
        source = replace(Source(url, **known), caveat=spec.publication.source.caveat)
        about = replace(spec.publication, source=source, width=0.125)
        changed = replace(spec, build=build, publication=about)
        monkeypatch.setitem(TEACHERS._entries, name, changed)
        return build(64).state_dict()

    return publish


def test_an_archive_is_fetched_and_converted_once(server, publish, tool, cache: Path, capsys):
    folder, url, asked = server
    publish("r50x4", f"{url}/ResNet50_4x.zip")
    writer = tool("write_checkpoint")
    writer.pack(writer.write_checkpoint("r50x4", folder), TEACHERS.get("r50x4"))
    expected = load_teacher("r50x4", weights=folder / "ResNet50_4x.zip")
    first = load_teacher("r50x4")
    assert "downloading http" in capsys.readouterr().out
    (cache / "teachers" / "r50x4" / "ResNet50_4x.zip").unlink()  # not needed any more
    second = load_teacher("r50x4")
    assert asked == ["/ResNet50_4x.zip"]
    assert torch.equal(first(IMAGES), expected(IMAGES))
    assert torch.equal(second(IMAGES), expected(IMAGES))
    assert not [path for path in cache.rglob("*") if "extracted" in path.name]


def test_a_pytorch_file_is_used_as_it_is_and_repaired_when_damaged(server, publish, cache, capsys):
    folder, url, asked = server
    weights = publish("r50-mocov2", f"{url}/moco.pth.tar")
    state = {f"module.encoder_q.{k}": v for k, v in weights.items()}
    # The older format, which has no checksum of its own.
    torch.save({"state_dict": state}, folder / "moco.pth.tar", _use_new_zipfile_serialization=False)
    expected = load_teacher("r50-mocov2")(IMAGES)
    assert torch.equal(load_teacher("r50-mocov2")(IMAGES), expected)
    assert len(asked) == 1
    assert not list(cache.rglob("*.safetensors"))
    file = cache / "teachers" / "r50-mocov2" / "moco.pth.tar"
    content = bytearray(file.read_bytes())
    content[-100] ^= 64
    file.write_bytes(content)
    assert torch.equal(load_teacher("r50-mocov2")(IMAGES), expected)
    assert "the file there is damaged" in capsys.readouterr().out
    assert len(asked) == 2


def test_without_a_network(publish, cache: Path):
    publish("r50x4", f"{NOWHERE}/ResNet50_4x.zip")
    with pytest.raises(DistillError) as caught:
        load_teacher("r50x4")
    message = str(caught.value)
    assert f"{NOWHERE}/ResNet50_4x.zip cannot be downloaded" in message
    assert f"put the file at {cache}/teachers/r50x4/ResNet50_4x.zip by hand" in message
    assert "--teacher-weights FILE" in message
    assert "--teacher digits-cbyol, which needs no download" in message


def test_what_is_known_about_a_link_is_said(server, publish):
    _, url, asked = server
    publish("r50-c-byol", f"{url}/checkpoint.tar.gz")
    with pytest.raises(DistillError, match=r"404.*the link was reported unreachable in 2026"):
        load_teacher("r50-c-byol")
    asked.clear()
    with pytest.raises(DistillError, match=r"is not downloaded from .* leads to the SimCLR"):
        load_teacher("r50-c-simclr")
    assert asked == []


def test_a_file_of_ones_own_with_another_checksum_is_read_and_said(publish, tmp_path, capsys):
    weights = publish("r50-mocov2", f"{NOWHERE}/moco.pth.tar", checksum="md5:a04e12f8")
    torch.save({f"encoder_q.{k}": v for k, v in weights.items()}, tmp_path / "own.pth")
    load_teacher("r50-mocov2", weights=tmp_path / "own.pth")
    assert "own.pth is not the published file (its md5 is" in capsys.readouterr().out


def test_a_conversion_by_somebody_else(publish, tmp_path: Path):
    weights = publish("r50", f"{NOWHERE}/ResNet50_1x.zip")
    classifier = {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": {**weights, **classifier}}, tmp_path / "resnet50-1x.pth")
    teacher = load_teacher("r50", weights=tmp_path / "resnet50-1x.pth")
    assert torch.equal(teacher.backbone.state_dict()["conv1.weight"], weights["conv1.weight"])
    with pytest.raises(DistillError, match="is a TensorFlow checkpoint, which"):
        load_teacher("r50-swav", weights=ORACLES / "simclr_tf1")


@pytest.mark.parametrize(
    ("name", "prefix", "others"),
    [
        ("r50-mocov2", "encoder_q.", ["encoder_k.conv1.weight", "queue", "encoder_q.fc.0.weight"]),
        ("r50-swav", "", ["projection_head.0.weight", "prototypes.weight"]),
    ],
)
def test_published_pytorch_layouts(publish, tmp_path: Path, name, prefix, others):
    weights = publish(name, f"{NOWHERE}/w.pth.tar")
    state = {f"module.{prefix}{k}": v for k, v in weights.items()}
    torch.save(state | {f"module.{key}": torch.zeros(1) for key in others}, tmp_path / "w.pth.tar")
    teacher = load_teacher(name, weights=tmp_path / "w.pth.tar")
    assert all(torch.equal(v, weights[k]) for k, v in teacher.backbone.state_dict().items())


def test_a_teacher_is_frozen_for_good(tmp_path: Path):
    torch.save(
        build_student("timm:test_resnet", image_size=32).backbone.state_dict(), tmp_path / "w"
    )
    teacher = load_teacher("timm:test_resnet", weights=tmp_path / "w", image_size=32)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    nn.Sequential(teacher).train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    with pytest.raises(DistillError, match="does not fit r50-swav"):
        load_teacher("r50-swav", weights=tmp_path / "w", image_size=64)


def test_a_timm_teacher_brings_its_own_input():
    spec = teacher_spec("timm:tf_efficientnet_lite0")
    assert (spec.input.mean, spec.input.crop_fraction) == ((0.5, 0.5, 0.5), 0.875)
    assert spec.input.interpolation == "bicubic"
    assert spec.layout.ignored == ("classifier.",)


def test_pixels_are_the_image():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(load_teacher("pixels")(images), (images / 255).flatten(1))


def test_a_run_directory_is_a_teacher(tmp_path: Path):
    student = build_student("timm:test_resnet", image_size=32).eval()
    save_network(student, tmp_path / "student.safetensors")
    teacher = load_teacher(str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), student(images))
    with pytest.raises(DistillError, match="brings its own image size"):
        load_teacher(str(tmp_path), image_size=64)
    with pytest.raises(DistillError, match="brings its own weights"):
        load_teacher(str(tmp_path), weights=tmp_path / "student.safetensors")


def test_an_unknown_teacher_gets_the_nearest_match():
    with pytest.raises(UnknownNameError, match="did you mean 'r50-swav'"):
        load_teacher("r50-swva")


def test_the_shipped_teacher_is_whole_and_as_good_as_it_was():
    folder = SHIPPED / "digits-cbyol"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert (folder / "backbone.safetensors").stat().st_size <= 3 * 2**20
    images = training_images(open_images("digits"), ImageOptions(holdout=0.0), seed=0)
    embedder = embedder_of(images, device=torch.device("cpu"), precision="fp32", num_workers=0)
    train, val = embedder.embed_both(load_teacher("digits-cbyol"), what="teacher")
    accuracy = nn_accuracy(train.features, train.labels, val.features, val.labels)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert abs(accuracy - metrics["nn_accuracy"]) < 2 / 360  # rounding may decide
