"""The plan's arithmetic, by hand, on round numbers."""

from __future__ import annotations

import pytest

ROUND = {
    "flops": 1e12,
    "matmul_flops": 1e12,
    "memory_bandwidth": 1e12,
    "interconnect": 1e9,
    "network": 1e8,
    "storage": 1e6,
    "decode": 10.0,
    "gpus_per_machine": 4,
}


@pytest.fixture
def module(tool):
    return tool("scale_plan")


@pytest.fixture
def planned(module):
    def make(number=1_000_000, num_gpus=4, **options):
        options = {"epochs": 2, "batch_per_gpu": 100, "cores_per_gpu": 5, **options}
        return module.plan(
            module.Images(number, 1000),
            module.Network(1e9, 1e6, 1000),
            module.Network(1e8, 1e6, 100),
            num_gpus=num_gpus,
            rates=module.Rates(**ROUND),
            **options,
        )

    return make


def test_parts_of_a_step(planned):
    step = planned(anchors=4000).step
    assert step["student"] == pytest.approx(100 * 3 * (1e8 + 2 * 100 * 1000) / 1e12)
    assert step["decoding"] == pytest.approx(100 / (5 * 10))
    assert step["reading"] == pytest.approx(100 * 1000 / 1e6)
    # 400 rows, 1000 anchors on each GPU, 1000 wide, three products
    assert step["loss"] == pytest.approx(2 * 400 * 1000 * 3 * 1000 / 1e12)
    exchanged = 2 * 0.75 * 1e6 * 4 + 0.75 * 400 * 1000 * 4 * 3
    assert step["exchange"] == pytest.approx(exchanged / 1e9)


def test_the_slowest_of_what_overlaps_counts(planned):
    found = planned()
    seconds = 2.0 + found.step["loss"] + found.step["exchange"]  # decoding
    assert found.hours == pytest.approx(2 * 1_000_000 / 400 * seconds / 3600)
    assert found.saturated == "decoding"
    assert planned(cores_per_gpu=10_000).saturated == "reading"


def test_several_machines_exchange_over_the_network(planned):
    within, beyond = planned(num_gpus=4), planned(num_gpus=8)
    assert beyond.step["exchange"] > 10 * within.step["exchange"]


def test_bytes(planned):
    found = planned()
    assert found.anchors == 128_000
    assert found.bank == 128_000 / 4 * 1000 * 2
    assert found.cache == 1_000_000 * 1000 * 2
    assert planned(number=50_000).anchors == 50_000
    assert planned(num_gpus=8).bank == found.bank / 2
    # The teacher's pass waits for the same images: 2 s a step
    assert found.teacher_hours == pytest.approx(1_000_000 / 400 * 2.0 / 3600)


def test_numbers_for_people(module):
    assert module.shown_bytes(262_144_000) == "262 MB"
    assert module.shown_bytes(6.55e12) == "6.55 TB"
    assert module.shown_hours(0.01) == "0.6 min"
    assert module.shown_hours(20) == "20 h"
    assert module.shown_hours(600) == "25 days"


def test_the_table_of_the_documentation_is_what_the_tool_prints(module, monkeypatch, capsys):
    from pathlib import Path

    monkeypatch.setattr("sys.argv", ["scale_plan.py"])
    module.main()
    page = (Path(module.__file__).parents[1] / "docs" / "scale.md").read_text()
    assert capsys.readouterr().out in page
