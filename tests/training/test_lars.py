import copy

import numpy as np
import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.training.lars import LARS

RATES = [0.4, 2.0, 0.1, 0.7]  # a change between steps tells lr inside the velocity from outside
SHAPES = [(4, 3), (2, 3, 3, 3), (5,)]


def random_parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def random_gradients(num_steps: int = len(RATES)) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(num_steps)]


def run(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients, rates=RATES
) -> None:
    for rate, of_step in zip(rates, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def by_hand(
    weight, gradients, *, rates=RATES, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001
):
    """Follow one weight through the equations of the papers, in float64."""
    weight = weight.detach().numpy().astype(np.float64)
    velocity = np.zeros_like(weight)
    for rate, gradient in zip(rates, gradients, strict=True):
        decayed = gradient.numpy().astype(np.float64) + weight_decay * weight
        norms = np.sqrt((weight**2).sum()), np.sqrt((decayed**2).sum())
        trust = trust_coefficient * norms[0] / norms[1] if min(norms) > 0 else 1.0
        velocity = momentum * velocity + rate * trust * decayed
        weight = weight - velocity
    return torch.from_numpy(weight).float()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.5},
        {"weight_decay": 1e-6, "momentum": 0.5, "trust_coefficient": 0.1},
        {"momentum": 0.0, "weight_decay": 0.1},
    ],
)
def test_several_steps_follow_the_papers(options):
    parameters, gradients = random_parameters(), random_gradients()
    expected = [
        by_hand(parameter, [of_step[i] for of_step in gradients], **options)
        for i, parameter in enumerate(parameters)
    ]
    run(LARS(parameters, 1.0, **options), parameters, gradients)
    for parameter, wanted, start in zip(parameters, expected, random_parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)
        moved = parameter.detach() - start.detach()
        torch.testing.assert_close(moved, wanted - start.detach(), rtol=1e-3, atol=1e-6)


def test_an_excluded_group_is_sgd_without_decay_at_a_constant_rate():
    parameters, gradients = random_parameters(), random_gradients()
    reference = copy.deepcopy(parameters)
    groups = [{"params": parameters, "adapted": False}]
    run(LARS(groups, 1.0, weight_decay=0.5), parameters, gradients, rates=[0.1] * 4)
    sgd = torch.optim.SGD(reference, 0.1, momentum=0.9)
    run(sgd, reference, gradients, rates=[0.1] * 4)
    for parameter, wanted in zip(parameters, reference, strict=True):
        torch.testing.assert_close(parameter, wanted)


def test_an_excluded_group_keeps_the_rate_inside_the_velocity():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = LARS([{"params": [weight], "adapted": False}], 1.0, weight_decay=0.5)
    run(optimizer, [weight], [[torch.ones(1)]] * 2, rates=[1.0, 0.0])
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.9]))  # 1, then 0.9 x 1 at rate 0


def test_groups_have_options_of_their_own():
    parameters, gradients = random_parameters(), random_gradients()
    adapted = by_hand(parameters[0], [of_step[0] for of_step in gradients], weight_decay=0.5)
    groups = [
        {"params": parameters[:1], "weight_decay": 0.5},
        {"params": parameters[1:], "adapted": False},
    ]
    start = copy.deepcopy(parameters)
    run(LARS(groups, 1.0), parameters, gradients)
    torch.testing.assert_close(parameters[0].detach(), adapted)
    small, large = ((p - s).norm() for p, s in zip(parameters[:2], start[:2], strict=True))
    assert large > 10 * small


def test_weights_of_zero_take_the_plain_step():
    weight = nn.Parameter(torch.zeros(3))
    run(LARS([weight], 1.0, weight_decay=0.5), [weight], [[torch.tensor([3.0, 0.0, 4.0])]], [0.1])
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.3, 0.0, -0.4]))


def test_a_gradient_of_zero_leaves_the_weights():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    run(LARS([weight], 1.0), [weight], [[torch.zeros(2)]], [0.1])
    assert weight.tolist() == [3.0, 4.0]


def test_parameters_without_gradient_are_left_alone_and_gradients_too():
    with_gradient, without = random_parameters()[:2]
    before = without.detach().clone()
    optimizer = LARS([with_gradient, without], 0.1, weight_decay=0.5)
    gradient = torch.randn(SHAPES[0])
    with_gradient.grad = gradient.clone()
    optimizer.step()
    assert torch.equal(without, before)
    assert without not in optimizer.state
    assert torch.equal(with_gradient.grad, gradient)


def test_a_group_without_any_gradient_is_passed_over():
    assert LARS(random_parameters(), 0.1).step(lambda: 3.0) == 3.0


def test_a_run_goes_on_bit_for_bit_from_its_state():
    gradients = random_gradients()
    whole, halves = random_parameters(), random_parameters()

    def optimizer(parameters):
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "adapted": False}]
        return LARS(groups, 1.0, weight_decay=0.5)

    run(optimizer(whole), whole, gradients)
    first = optimizer(halves)
    run(first, halves, gradients[:2], RATES[:2])
    state, resumed = copy.deepcopy(first.state_dict()), copy.deepcopy(halves)
    second = LARS([{"params": resumed[:2]}, {"params": resumed[2:]}], 9.0)
    second.load_state_dict(state)
    assert [group["adapted"] for group in second.param_groups] == [True, False]
    run(second, resumed, gradients[2:], RATES[2:])
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_schedule_drives_it():
    parameters, gradients = random_parameters(), random_gradients()
    rates = [0.5 / (step + 1) for step in range(4)]
    expected = by_hand(parameters[0], [of_step[0] for of_step in gradients], rates=rates)
    optimizer = LARS(parameters, 0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(parameters[0].detach(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr of LARS is -0.1, it must be at least 0"),
        ({"momentum": 1.0}, "momentum of LARS is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay of LARS is -1.0"),
        ({"trust_coefficient": 0.0}, "trust_coefficient of LARS is 0.0, it must be positive"),
        ({"lr": float("nan")}, "lr of LARS is nan"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(DistillError, match=message):
        LARS(random_parameters(), **{"lr": 0.1, **options})
    with pytest.raises(DistillError, match=message):
        LARS([{"params": random_parameters(), **options}], 0.1)
