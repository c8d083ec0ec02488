from pathlib import Path

import pytest
import torch

from distill.engine.checkpoint import (
    Progress,
    Shard,
    checkpoints,
    load_newest,
    save_checkpoint,
)
from distill.errors import DistillError


def test_the_newest_comes_back_whole(tmp_path: Path):
    state = {"weights": torch.randn(3), "nested": {"list": [1, 2.5, "x", None, True]}}
    save_checkpoint(tmp_path, Progress(3, 1, 2, 4.5), {"old": 1})
    save_checkpoint(tmp_path, Progress(20, 2, 0, 9.0), state)
    progress, loaded, shards = load_newest(tmp_path)
    assert progress == Progress(20, 2, 0, 9.0)
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["nested"] == state["nested"]
    assert shards == []


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
        DistillError,
        match=r"2\.pt is damaged; remove step-000000002\.pt to go on from step-000000001",
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
    assert load_newest(tmp_path).state == {"a": 1}


def save_shards(folder: Path, step: int, num_shards: int) -> None:
    """Save as the ranks would, one after the other."""
    for rank in range(num_shards):
        shard = Shard(rank, num_shards, {"rows": torch.full((50,), step + rank)})
        save_checkpoint(folder, Progress(step), {"step": step}, shard)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shards_come_back_in_order_without_being_read(tmp_path: Path, monkeypatch):
    save_shards(tmp_path, 10, 3)
    load, mapped = torch.load, {}
    monkeypatch.setattr(
        torch,
        "load",
        lambda path, **how: mapped.update({path.name: how["mmap"]}) or load(path, **how),
    )
    loaded = load_newest(tmp_path)
    assert loaded.state == {"step": 10}
    assert [int(shard["rows"][-1]) for shard in loaded.shards] == [10, 11, 12]
    shards = {f"step-000000010.queue-{rank}-of-3.pt": True for rank in range(3)}
    assert mapped == {"step-000000010.pt": False, **shards}


def test_shards_go_with_their_checkpoint(tmp_path: Path):
    save_shards(tmp_path, 1, 2)
    save_shards(tmp_path, 2, 2)
    (tmp_path / "step-000000003.queue-0-of-2.pt").touch()  # of a rank that was killed
    (tmp_path / "step-000000003.queue-1-of-2.pt.partial").touch()
    (tmp_path / "notes.txt").touch()
    save_shards(tmp_path, 3, 1)
    assert names(tmp_path) == [
        "notes.txt",
        "step-000000002.pt",
        "step-000000002.queue-0-of-2.pt",
        "step-000000002.queue-1-of-2.pt",
        "step-000000003.pt",
        "step-000000003.queue-0-of-1.pt",
    ]
    save_shards(tmp_path, 3, 2)  # the same step again, on other ranks
    assert "step-000000003.queue-0-of-1.pt" not in names(tmp_path)
    assert len(load_newest(tmp_path).shards) == 2


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path, damage: str):
    save_shards(tmp_path, 1, 4)
    first = tmp_path / "step-000000001.queue-2-of-4.pt"
    content = first.read_bytes()
    first.unlink() if damage == "missing" else first.write_bytes(content[:300])
    with pytest.raises(DistillError, match=rf"queue-2-of-4\.pt is {damage}; put a copy there or"):
        load_newest(tmp_path)
    first.write_bytes(content)
    save_shards(tmp_path, 2, 4)
    newest = tmp_path / "step-000000002.queue-0-of-4.pt"
    newest.unlink() if damage == "missing" else newest.write_bytes(b"")
    with pytest.raises(
        DistillError,
        match=rf"0-of-4\.pt is {damage}; remove step-000000002\.pt to go on from step-000000001",
    ):
        load_newest(tmp_path)
    (tmp_path / "step-000000002.pt").unlink()
    assert load_newest(tmp_path).progress == Progress(1)
