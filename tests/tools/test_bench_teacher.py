"""The benchmark of teachers, on the shipped one."""

import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_measures(tool):
    reading, rate, peak = tool("bench_teacher").measured("digits-cbyol", None, 16, 2, "fp32")
    assert reading > 0
    assert rate > 0
    assert 0.05 < peak < 20
