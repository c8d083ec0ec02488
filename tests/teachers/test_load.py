"""Published teachers, fetched from where they lie."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.models import download
from distill.models.download import Source
from teachers.load import load_teacher
from teachers.registry import TEACHERS
from teachers.resnet import build_resnet

ORACLES = Path(__file__).parents[1] / "oracles"
IMAGES = torch.rand(2, 3, 64, 64)


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
    """Return a function that makes a published teacher small and lets it lie elsewhere."""

    def publish(name: str, url: str, **known) -> None:
        spec = TEACHERS.get(name)
        pool = "same" if spec.layout.kind == "tensorflow" else "symmetric"
        build = partial(build_resnet, depth=50, width=0.125, pool=pool)
        source = replace(Source(url, **known), caveat=spec.publication.source.caveat)
        about = replace(spec.publication, source=source, width=0.125)
        changed = replace(spec, build=build, publication=about)
        monkeypatch.setitem(TEACHERS._entries, name, changed)

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


def test_a_pytorch_file_is_used_as_it_is(server, publish, cache: Path):
    folder, url, asked = server
    publish("r50-swav", f"{url}/swav.pth.tar")
    weights = TEACHERS.get("r50-swav").build(64).state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, folder / "swav.pth.tar")
    one, other = load_teacher("r50-swav"), load_teacher("r50-swav")
    assert torch.equal(one(IMAGES), other(IMAGES))
    assert asked == ["/swav.pth.tar"]
    assert not list(cache.rglob("*.safetensors"))


def test_damage_in_the_cache_is_repaired(server, publish, cache: Path, capsys):
    folder, url, asked = server
    publish("r50-mocov2", f"{url}/moco.pth.tar")
    weights = TEACHERS.get("r50-mocov2").build(64).state_dict()
    state = {f"module.encoder_q.{k}": v for k, v in weights.items()}
    # The older format, which has no checksum of its own.
    torch.save({"state_dict": state}, folder / "moco.pth.tar", _use_new_zipfile_serialization=False)
    expected = load_teacher("r50-mocov2")(IMAGES)
    file = cache / "teachers" / "r50-mocov2" / "moco.pth.tar"
    content = bytearray(file.read_bytes())
    content[-100] ^= 64
    file.write_bytes(content)
    assert torch.equal(load_teacher("r50-mocov2")(IMAGES), expected)
    assert "there is damaged" in capsys.readouterr().out
    assert len(asked) == 2


def test_without_a_network(publish, cache: Path):
    publish("r50x4", "http://127.0.0.1:9/ResNet50_4x.zip")
    with pytest.raises(DistillError) as caught:
        load_teacher("r50x4")
    message = str(caught.value)
    assert "http://127.0.0.1:9/ResNet50_4x.zip cannot be downloaded" in message
    assert f"put the file at {cache}/teachers/r50x4/ResNet50_4x.zip by hand" in message
    assert "--teacher-weights FILE" in message
    assert "--teacher digits-cbyol, which needs no download" in message


def test_what_is_known_about_a_link_is_said(server, publish):
    _, url, asked = server
    publish("r50-c-byol", f"{url}/checkpoint.tar.gz")
    with pytest.raises(DistillError, match=r"404.*the link was reported unreachable in 2026"):
        load_teacher("r50-c-byol")
    asked.clear()
    with pytest.raises(DistillError, match=r"is not fetched from .* leads to the SimCLR"):
        load_teacher("r50-c-simclr")
    assert asked == []


def test_another_checksum_is_another_file(server, publish, cache: Path):
    folder, url, _ = server
    publish("r50-mocov2", f"{url}/moco.pth.tar", checksum="md5:a04e12f8")
    (folder / "moco.pth.tar").write_bytes(bytes(np.arange(100, dtype=np.uint8)))
    with pytest.raises(DistillError, match=r"its md5 is \w+, not a04e12f8"):
        load_teacher("r50-mocov2")
    assert not list(cache.rglob("moco.pth.tar"))


def test_a_file_of_one_s_own_with_another_checksum_is_read_and_said(publish, tmp_path, capsys):
    publish("r50-mocov2", "http://127.0.0.1:9/moco.pth.tar", checksum="md5:a04e12f8")
    weights = TEACHERS.get("r50-mocov2").build(64).state_dict()
    torch.save({f"encoder_q.{k}": v for k, v in weights.items()}, tmp_path / "own.pth")
    load_teacher("r50-mocov2", weights=tmp_path / "own.pth")
    assert "own.pth is not the published file (its md5 is" in capsys.readouterr().out


def test_a_conversion_by_somebody_else(publish, tmp_path: Path):
    publish("r50", "http://127.0.0.1:9/ResNet50_1x.zip")
    weights = TEACHERS.get("r50").build(64).state_dict()
    classifier = {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": {**weights, **classifier}}, tmp_path / "resnet50-1x.pth")
    teacher = load_teacher("r50", weights=tmp_path / "resnet50-1x.pth")
    assert torch.equal(teacher.backbone.state_dict()["conv1.weight"], weights["conv1.weight"])
    with pytest.raises(DistillError, match="is a TensorFlow checkpoint, and how those name"):
        load_teacher("r50-swav", weights=ORACLES / "simclr_tf1")
