from pathlib import Path

import pytest
import torch

from distill.engine.checkpoint import Progress, checkpoints, load_newest, save_checkpoint
from distill.errors import DistillError


def test_the_newest_comes_back_whole(tmp_path: Path):
    state = {"weights": torch.randn(3), "nested": {"list": [1, 2.5, "x", None, True]}}
    save_checkpoint(tmp_path, Progress(3, 1, 2, 4.5), {"old": 1})
    save_checkpoint(tmp_path, Progress(20, 2, 0, 9.0), state)
    progress, loaded = load_newest(tmp_path)
    assert progress == Progress(20, 2, 0, 9.0)
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["nested"] == state["nested"]


def test_two_are_kept_and_nothing_else_is_left(tmp_path: Path):
    for step in (1, 2, 10, 1000):
        save_checkpoint(tmp_path, Progress(step), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010.pt", "step-000001000.pt"]
    assert checkpoints(tmp_path)[-1].name == "step-000001000.pt"


def test_an_empty_folder_has_none(tmp_path: Path):
    assert load_newest(tmp_path) is None


def test_a_damaged_one_is_named_with_the_one_before_it(tmp_path: Path):
    save_checkpoint(tmp_path, Progress(1), {"a": torch.zeros(100)})
    newest = save_checkpoint(tmp_path, Progress(2), {"a": torch.zeros(100)})
    newest.write_bytes(newest.read_bytes()[:200])
    with pytest.raises(
        DistillError, match=r"step-000000002\.pt is damaged; remove it .* step-000000001"
    ):
        load_newest(tmp_path)


def test_another_format_is_refused(tmp_path: Path):
    torch.save({"format": 99}, tmp_path / "step-000000001.pt")
    with pytest.raises(DistillError, match="another version of distill"):
        load_newest(tmp_path)


def test_a_failed_write_leaves_the_last_one_intact(tmp_path: Path, monkeypatch):
    save_checkpoint(tmp_path, Progress(1), {"a": 1})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, Progress(2), {"a": 2})
    assert load_newest(tmp_path)[1] == {"a": 1}
