import pytest

from distill.training.diagnostics import CollapseWatch

HEALTHY = {"loss": 3.0, "spread": 0.3, "dead_units": 0.5, "loss_over_chance": 0.9}


@pytest.mark.parametrize(
    ("step", "values", "num_epochs", "message"),
    [
        (50, HEALTHY, 2, None),
        (50, {"loss": 1.0}, 9, None),  # an objective that tells nothing of it
        (49, {**HEALTHY, "spread": 0.0}, 0, None),
        (50, {**HEALTHY, "spread": 0.0199}, 0, "spread 0.02 of at most 1, 50% of its units"),
        (50, {**HEALTHY, "spread": 0.02}, 0, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 0, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 1, None),
        (50, {**HEALTHY, "loss_over_chance": 1.2}, 2, "its loss is 1.20 times"),
        (50, {**HEALTHY, "loss_over_chance": 0.98}, 2, None),
    ],
)
def test_when_it_speaks(step, values, num_epochs, message):
    said = CollapseWatch().look(step, values, num_epochs=num_epochs)
    assert (said is None) == (message is None)
    if message is not None:
        assert said.startswith(f"warning: at step {step} the network has ")
        assert message in said
        for remedy in ("--optimizer muon", "--warmup-epochs", "--learning-rate"):
            assert remedy in said


def test_it_speaks_once():
    watch = CollapseWatch()
    assert watch.look(60, {"spread": 0.0}) is not None
    assert watch.look(70, {"spread": 0.0}) is None
