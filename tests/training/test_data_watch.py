import pytest

from distill.training.diagnostics import DataWatch


@pytest.mark.parametrize(
    ("share", "seconds", "speaks"),
    [(0.11, 31, True), (0.1, 31, False), (0.5, 29, False), (0.0, 0, False)],
)
def test_it_speaks_of_long_waits(share, seconds, speaks):
    message = DataWatch().look(share, seconds, num_workers=3)
    assert (message is not None) == speaks
    if speaks:
        assert message.startswith("11% of the epoch went to waiting")
        assert "--num-workers (now 3)" in message


def test_it_speaks_once():
    watch = DataWatch()
    assert watch.look(0.05, 100, num_workers=1) is None
    assert watch.look(0.9, 100, num_workers=1) is not None
    assert watch.look(0.9, 100, num_workers=1) is None
