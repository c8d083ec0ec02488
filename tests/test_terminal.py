import logging

import pytest

from distill import distributed, terminal
from distill.terminal import progress_bar

logger = logging.getLogger("distill.test")


def test_bytes_are_shown_with_prefixes():
    with progress_bar(5_000_000, initial=2_000_000, description="weights", unit="B") as bar:
        assert (bar.total, bar.n) == (5_000_000, 2_000_000)
    assert progress_bar(None, description="weights", unit="B").total is None


@pytest.fixture
def often(monkeypatch):
    """Let a file have a line for every update."""
    monkeypatch.setattr(terminal, "SECONDS_PER_LINE", 0.0)


def test_a_file_gets_whole_lines(often, capsys):
    with progress_bar(20, description="train", unit="step") as bar:
        for number in range(2):
            bar.set_postfix_str(f"loss {number}")
            bar.update(5)
            logger.info("a line")
    written = capsys.readouterr()
    assert written.out == "a line\n" * 2
    assert "\r" not in written.err
    lines = written.err.splitlines()
    assert lines[-1].startswith("train:  50% 10/20")
    assert lines[-1].endswith("loss 1]")


def test_a_file_gets_nothing_of_what_is_short(capsys):
    with progress_bar(2, description="train") as bar:
        bar.set_postfix(loss=1)
        bar.set_postfix_str("loss 1")
        bar.update(2)
        logger.info("a line")
    assert capsys.readouterr().err == ""


def test_other_processes_are_silent(often, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    with progress_bar(2, description="train") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar(2, description="train") as bar:
        bar.update(2)
    assert "\r" in capsys.readouterr().err
