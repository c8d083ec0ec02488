"""The writer of checkpoints in published layouts, at an eighth of the size."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from distill.models.checkpoints.open import open_checkpoint
from teachers.load import load_teacher
from teachers.registry import TEACHERS
from teachers.resnet import build_resnet


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """Make the published networks small."""
    for name in ("r50x4", "r50-c-byol"):
        spec = TEACHERS.get(name)
        build = partial(build_resnet, depth=50, width=0.125)
        publication = replace(spec.publication, width=0.125)
        monkeypatch.setitem(
            TEACHERS._entries, name, replace(spec, build=build, publication=publication)
        )


@pytest.mark.parametrize("teacher", ["r50x4", "r50-c-byol"])
@torch.no_grad()
def test_the_network_loads_and_does_not_explode(small, tool, tmp_path: Path, teacher: str):
    prefix = tool("write_checkpoint").write_checkpoint(teacher, tmp_path)
    network = load_teacher(teacher, weights=tmp_path)
    embeddings = network(torch.rand(2, 3, 64, 64))
    assert embeddings.std() > 0.01
    assert embeddings.max() < 1e5
    with open_checkpoint(prefix) as file:
        assert any(name.startswith("global_step") for name in file.shapes)


def test_it_packs_as_published(small, tool, tmp_path: Path):
    writer = tool("write_checkpoint")
    prefix = writer.write_checkpoint("r50x4", tmp_path)
    archive = writer.pack(prefix, TEACHERS.get("r50x4"))
    assert archive.name == "ResNet50_4x.zip"
    one, other = (load_teacher("r50x4", weights=path) for path in (prefix, archive))
    for key, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[key])
