import errno
import json
import os
from pathlib import Path

import pytest

from distill.reports.run_facts import log_lines
from distill.training import callbacks as log_module
from distill.training.callbacks import RunLog, TensorBoardLog, log_parts


def lines(folder: Path) -> list[tuple]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in found]


def test_lines_after_the_checkpoint_are_replaced_not_doubled(tmp_path: Path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": float(step)})
        if step == 3:
            at_checkpoint = log.sync()
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    again = RunLog(tmp_path, num_bytes=at_checkpoint)
    again.write(4, {"loss": 40.0})
    assert again.sync() == (tmp_path / "log.jsonl").stat().st_size
    again.close()
    assert lines(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_lines_of_one_step_are_not_doubled_either(tmp_path: Path):
    """While the queue is filled no step is taken; a run that was killed then begins anew."""
    for _ in range(2):
        log = RunLog(tmp_path)
        for place in range(3):
            log.write(0, {"loss": place})
        log.close()
    assert lines(tmp_path) == [(0, 0), (0, 1), (0, 2)]


def test_a_log_that_someone_emptied_goes_on(tmp_path: Path):
    log = RunLog(tmp_path, num_bytes=10_000)
    log.write(4, {"loss": 1})
    log.close()
    assert lines(tmp_path) == [(4, 1)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("written", [0, 7])
def test_lines_wait_while_the_disk_refuses(tmp_path: Path, monkeypatch, capsys, code, written):
    log, write, is_full = RunLog(tmp_path), os.write, True

    def refuse(descriptor, content):
        if not is_full:
            return write(descriptor, content)
        if written and not os.fstat(descriptor).st_size % 100:
            return write(descriptor, content[:written])  # a disk takes what still fits
        raise OSError(code, os.strerror(code))

    log.write(0, {"loss": 0, "padding": "x" * 62})
    assert (tmp_path / "log.jsonl").stat().st_size == 100
    monkeypatch.setattr(log_module.os, "write", refuse)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    length = log.sync()
    assert (tmp_path / "log.jsonl").stat().st_size == 100 + written
    is_full = False
    log.write(4, {"loss": 4})
    log.close()
    assert lines(tmp_path) == [(step, step) for step in range(5)]
    assert length + len('{"step": 4, "loss": 4}\n') == (tmp_path / "log.jsonl").stat().st_size
    said = capsys.readouterr().out
    assert said.count("cannot be written") == 1
    assert os.strerror(code) in said


def written(folder: Path, steps: range, *, num_bytes: int = 0) -> list[int]:
    """Write a line for each step; return the length of the log after each."""
    log = RunLog(folder, num_bytes=num_bytes)
    lengths = []
    for step in steps:
        log.write(step, {"loss": step})
        lengths.append(log.sync())
    log.close()
    return lengths


def test_a_long_log_is_parted_and_cut_in_any_part(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_BYTES", 100)  # four or five lines
    lengths = written(tmp_path, range(12))
    names = ["log-0001.jsonl", "log-0002.jsonl", "log.jsonl"]
    assert [part.name for part in log_parts(tmp_path)] == names
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(12))
    for kept in (11, 10, 7, 4, 3, 0):
        written(tmp_path, range(kept + 1, 12), num_bytes=lengths[kept])
        assert [line["step"] for line in log_lines(tmp_path)] == list(range(12))
        assert [part.name for part in log_parts(tmp_path)] == names
        assert sum(part.stat().st_size for part in log_parts(tmp_path)) == lengths[-1]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log.write(1, {"epoch": 0, "event": "x", "loss": 0.5})
    log.write(2, {"epoch": 0, "loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_tensorboard_that_cannot_be_written_is_given_up(tmp_path: Path, monkeypatch, capsys):
    log = TensorBoardLog(tmp_path)

    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log._writer, "add_scalar", refuse)
    log.write(1, {"loss": 1})
    log.write(2, {"loss": 2})
    log.close()
    assert capsys.readouterr().out.count("TensorBoard's files cannot be written") == 1
