"""The roofline's report: its lines add up, and its mistakes are told."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def roofline(monkeypatch, capsys):
    """Return a function that runs the tool and returns what it printed."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import roofline as tool

    def run(*arguments: str) -> str:
        assert tool.main(list(arguments)) == 0
        return capsys.readouterr().out

    yield run
    del sys.modules["roofline"]


def test_a_report_adds_up(roofline):
    report = roofline("256", "128000", "8192", "512", "bf16", "H100")
    table = {line[:16].strip(): line[16:].split() for line in report.splitlines()}
    kernels = [table[name] for name in ("first pass", "merge", "second pass", "sum of shares")]
    for column, total in enumerate(table["total"]):
        assert sum(float(row[column]) for row in kernels) == pytest.approx(float(total), abs=2)
    assert "floor       2364.3 MB   604.0 GFLOP   706 us" in report
    assert "record both" in report


def test_the_published_sizes_on_every_device(roofline):
    lines = roofline("--published").splitlines()
    assert lines[1].split() == ["Dt", "Ds", "A100", "H100", "H200", "B200"]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["2048", "512"],
        ["2048", "4096"],
        ["8192", "512"],
        ["8192", "4096"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("256 128000 2048", "give B K Dt Ds"),
        ("256 0 2048 512", "all at least 1"),
        ("256 1000 2048 512 bf16 V100", "invalid choice: 'V100'"),
        ("256 1000 2048 512 --one-bank", "equal widths, got 2048 and 512"),
    ],
)
def test_mistakes(roofline, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        roofline(*arguments.split())
    assert message in capsys.readouterr().err
