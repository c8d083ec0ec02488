"""Checkpoints: which are kept, what is said of those that cannot be used, what a full disk does."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from distill.errors import DistillError
from distill.losses.base import ShardState
from distill.models.checkpoints import safetensors as safetensors_file
from distill.training.checkpoints import (
    About,
    CheckpointNotWrittenError,
    Progress,
    checkpoint_bytes,
    checkpoints,
    load_newest,
    save_checkpoint,
)


def file_of(step: int) -> str:
    return f"step-{step:09d}.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoints(folder)]


def test_the_newest_comes_back_whole(tmp_path: Path):
    state = {"weights": torch.randn(3), "nested": {"list": [1, 2.5, "x", None, True]}}
    save_checkpoint(tmp_path, Progress(3, 1, 2, 4.5), {"old": 1})
    save_checkpoint(tmp_path, Progress(20, 2, 0, 9.0, 77), state, about=About({"seed": 3}))
    found = load_newest(tmp_path)
    assert found is not None
    assert found.path == tmp_path / file_of(20)
    assert found.progress == Progress(20, 2, 0, 9.0, 77)
    assert found.run == {"seed": 3}
    assert torch.equal(found.state["weights"], state["weights"])
    assert found.state["nested"] == state["nested"]
    assert found.shards == []


def test_an_empty_folder_has_none(tmp_path: Path):
    assert load_newest(tmp_path) is None


def test_two_are_kept_and_nothing_else_is_left(tmp_path: Path):
    for step in (1, 2, 10, 1000):
        save_checkpoint(tmp_path, Progress(step), {})
    assert names(tmp_path) == [file_of(10), file_of(1000)]


def test_the_best_stays_and_of_equals_the_newest(tmp_path: Path):
    for step, score in enumerate([0.1, 0.7, 0.3, 0.7, None, 0.2, 0.5, None, None], start=1):
        save_checkpoint(tmp_path, Progress(step, step), {}, about=About(score=score))
    assert steps(tmp_path) == [4, 8, 9]


def test_those_of_every_n_epochs_stay(tmp_path: Path):
    for epoch in range(1, 10):
        for batch in (0, 3):  # the second is that of a run that was stopped within an epoch
            progress = Progress(10 * epoch + batch, epoch, batch)
            save_checkpoint(tmp_path, progress, {}, about=About(keep_every=3))
    assert steps(tmp_path) == [30, 60, 90, 93]


def test_the_size_counts_shards(tmp_path: Path):
    save_shards(tmp_path, 1, 2)
    path = save_checkpoint(tmp_path, Progress(2), {"a": torch.zeros(1000)})
    assert checkpoint_bytes(path) == path.stat().st_size > 4000
    files = list(tmp_path.glob("step-000000001*"))
    assert len(files) == 3
    assert checkpoint_bytes(checkpoints(tmp_path)[0]) == sum(f.stat().st_size for f in files)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_one_is_named_with_the_newest_that_is_whole(tmp_path: Path, damage: str):
    paths = [
        save_checkpoint(
            tmp_path, Progress(step, step), {"a": torch.ones(100)}, about=About(score=s)
        )
        for step, s in ((1, 0.9), (2, 0.1), (3, 0.2))
    ]
    for path in paths[1:]:
        content = bytearray(path.read_bytes())
        content[-200] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:200])
    with pytest.raises(DistillError, match=r"3\.safetensors is damaged; remove ") as raised:
        load_newest(tmp_path)
    remedy = "remove step-000000002.* and step-000000003.* to go on from step-000000001.safetensors"
    assert remedy in str(raised.value)
    for path in paths[1:]:
        path.unlink()
    assert load_newest(tmp_path).progress == Progress(1, 1)


def test_one_without_another_offers_a_copy_or_a_new_run(tmp_path: Path):
    path = save_checkpoint(tmp_path, Progress(1), {})
    path.write_bytes(b"")
    with pytest.raises(DistillError, match="damaged; put a copy there or start a new run"):
        load_newest(tmp_path)


def refuse(code: int):
    def write(tensors, path, metadata=None):
        path.write_bytes(b"half of it")
        raise OSError(code, "the system's words", str(path))

    return write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_refuses_leaves_the_others_intact(tmp_path: Path, monkeypatch, code):
    save_checkpoint(tmp_path, Progress(1), {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file.safetensors.torch, "save_file", refuse(code))
        with pytest.raises(CheckpointNotWrittenError, match="the system's words"):
            save_checkpoint(tmp_path, Progress(2), {"a": 2})
    assert names(tmp_path) == [file_of(1)]
    assert load_newest(tmp_path).state == {"a": 1}


def test_a_main_file_that_does_not_fit_takes_its_shard_along(tmp_path: Path, monkeypatch):
    save_shards(tmp_path, 1, 1)
    save, calls = safetensors_file.safetensors.torch.save_file, []

    def second_fails(tensors, path, metadata=None):
        calls.append(path)
        return (refuse(errno.ENOSPC) if len(calls) == 2 else save)(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file.safetensors.torch, "save_file", second_fails)
        with pytest.raises(CheckpointNotWrittenError):
            save_shards(tmp_path, 2, 1)
    assert names(tmp_path) == ["step-000000001.queue-0-of-1.safetensors", file_of(1)]


def test_what_the_library_says_of_a_disk_is_the_systems_error(tmp_path: Path):
    with pytest.raises(OSError, match="its folder is gone"):
        safetensors_file.write_safetensors(tmp_path / "no" / "a", {}, {})
    error = safetensors_file._disk_error(
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        tmp_path,
    )
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def save_shards(folder: Path, step: int, num_shards: int) -> None:
    """Save as the ranks would, one after the other."""
    for rank in range(num_shards):
        shard = ShardState(rank, num_shards, {"rows": torch.full((50,), step + rank)})
        save_checkpoint(folder, Progress(step), {"step": step}, shard)


def test_shards_come_back_in_order(tmp_path: Path):
    save_shards(tmp_path, 10, 3)
    loaded = load_newest(tmp_path)
    assert loaded.state == {"step": 10}
    assert [int(shard["rows"][-1]) for shard in loaded.shards] == [10, 11, 12]


def test_shards_go_with_their_checkpoint(tmp_path: Path):
    save_shards(tmp_path, 1, 2)
    save_shards(tmp_path, 2, 2)
    (tmp_path / "step-000000003.queue-0-of-2.safetensors").touch()  # of a rank that was killed
    (tmp_path / "step-000000003.queue-1-of-2.safetensors.partial").touch()
    (tmp_path / "notes.txt").touch()
    save_shards(tmp_path, 3, 1)
    assert names(tmp_path) == [
        "notes.txt",
        *(f"step-000000002.queue-{rank}-of-2.safetensors" for rank in range(2)),
        file_of(2),
        "step-000000003.queue-0-of-1.safetensors",
        file_of(3),
    ]
    save_shards(tmp_path, 3, 2)  # the same step again, on other ranks
    assert "step-000000003.queue-0-of-1.safetensors" not in names(tmp_path)
    assert len(load_newest(tmp_path).shards) == 2


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path, damage: str):
    save_shards(tmp_path, 1, 4)
    first = tmp_path / "step-000000001.queue-2-of-4.safetensors"
    content = first.read_bytes()
    first.unlink() if damage == "missing" else first.write_bytes(content[:300])
    words = rf"queue-2-of-4\.safetensors is {damage}; put a copy there or"
    with pytest.raises(DistillError, match=words):
        load_newest(tmp_path)
    first.write_bytes(content)
    save_shards(tmp_path, 2, 4)
    newest = tmp_path / "step-000000002.queue-0-of-4.safetensors"
    newest.unlink() if damage == "missing" else newest.write_bytes(b"")
    words = rf"0-of-4\.safetensors is {damage}; remove step-000000002\.\* to go on from step-0+1\."
    with pytest.raises(DistillError, match=words):
        load_newest(tmp_path)
    (tmp_path / file_of(2)).unlink()
    assert load_newest(tmp_path).progress == Progress(1)
