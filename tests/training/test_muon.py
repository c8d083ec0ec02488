"""Kernels move by orthogonalized momentum, everything else as AdamW moves it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distill.config import OptimizationOptions
from distill.training.muon import KERNEL_RATE, is_kernel, orthogonalized
from distill.training.optimizer import build_optimizer, build_schedule

OPTIONS = OptimizationOptions(
    epochs=4, learning_rate=1e-3, warmup_epochs=0.0, optimizer="muon", weight_decay=0.1
)


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def set_gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16), (1, 9)])
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_singular_values_come_near_one_and_directions_stay(shape, scale):
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(matrix)
    left, values, right = np.linalg.svd(matrix.numpy().astype(np.float64), full_matrices=False)
    spectrum = left.T @ found.numpy() @ right.T
    diagonal = np.diag(spectrum)
    # the polynomial of the source, followed five times from the normalized singular values
    expected = values / np.linalg.norm(values)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    np.testing.assert_allclose(diagonal, expected, atol=1e-4)
    np.testing.assert_allclose(spectrum - np.diag(diagonal), 0, atol=1e-4)
    assert 0.6 < diagonal[0] < 1.25


def test_small_singular_values_are_not_lost_in_rounding():
    left, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(2)))
    right, _ = torch.linalg.qr(torch.randn(288, 32, generator=torch.Generator().manual_seed(3)))
    matrix = left.double() * torch.logspace(0, -4, 32, dtype=torch.float64) @ right.mT.double()
    torch.testing.assert_close(
        orthogonalized(matrix.float()).double(), orthogonalized(matrix), rtol=0, atol=1e-3
    )


def test_bfloat16_is_near(monkeypatch):
    matrix = torch.randn(64, 300, generator=torch.Generator().manual_seed(4))
    matrix = matrix * torch.logspace(0, -2, 300)  # small singular values, too
    exact = orthogonalized(matrix.double())
    near = orthogonalized(matrix, in_bf16=True)
    assert near.dtype == torch.float32
    assert 1e-3 < (near - exact).norm() / exact.norm() < 0.03
    values = torch.linalg.svdvals(near)
    assert values.min() > 0.5
    assert values.max() < 1.3
    network = make_network()
    network(torch.zeros(2, 3, 5, 5))
    seen = []
    monkeypatch.setattr(
        "distill.training.muon.orthogonalized",
        lambda of, *, in_bf16: seen.append(in_bf16) or orthogonalized(of, in_bf16=in_bf16),
    )
    for precision in ("fp32", "bf16"):
        optimizer = build_optimizer(network.parameters(), OPTIONS, precision=precision)
        set_gradients(network, 0)
        optimizer.step()
    assert seen == [False, False, True, True]


def test_a_step_is_the_formula():
    network = make_network()
    network(torch.zeros(2, 3, 5, 5))
    kernel = network[0].weight
    before, buffer = kernel.detach().double(), torch.zeros(8, 27, dtype=torch.float64)
    optimizer = build_optimizer(network.parameters(), OPTIONS)
    rate = KERNEL_RATE * 1e-3
    for step in range(3):
        set_gradients(network, step)
        gradient = kernel.grad.flatten(1).double()
        buffer = 0.9 * buffer + gradient
        direction = orthogonalized(gradient + 0.9 * buffer)
        move = rate * before.norm() * direction / direction.norm()
        before = (1 - rate * 0.1) * before - move.view_as(before)
        optimizer.step()
    torch.testing.assert_close(kernel.detach().double(), before, rtol=1e-5, atol=1e-6)


def test_everything_else_is_adamws():
    network = make_network()
    network(torch.zeros(2, 3, 5, 5))
    twin = copy.deepcopy(network)
    muon = build_optimizer(network.parameters(), OPTIONS)
    adamw = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    for step in range(3):
        set_gradients(network, step)
        set_gradients(twin, step)
        muon.step()
        adamw.step()
    same = {
        name
        for (name, one), other in zip(network.named_parameters(), twin.parameters(), strict=True)
        if torch.equal(one, other)
    }
    everything = {name for name, _ in network.named_parameters()}
    assert everything - same == {"0.weight", "3.weight"}  # not the depthwise kernel
    assert {id(p) for p in network.parameters() if is_kernel(p)} == {
        id(network[0].weight),
        id(network[3].weight),
    }


def test_a_kernel_of_zeros_moves_and_one_without_a_gradient_does_not():
    zeros, still = nn.Parameter(torch.zeros(4, 2, 3, 3)), nn.Parameter(torch.ones(4, 2, 3, 3))
    optimizer = build_optimizer([zeros, still], OPTIONS)
    zeros.grad = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    assert zeros.norm().item() == pytest.approx(KERNEL_RATE * 1e-3 * 0.01 * 2, rel=1e-4)
    assert torch.equal(still, torch.ones_like(still))
    zeros.grad = torch.zeros_like(zeros)
    optimizer.state.clear()
    before = zeros.detach().clone()
    optimizer.step()
    torch.testing.assert_close(zeros.detach(), (1 - KERNEL_RATE * 1e-4) * before, rtol=1e-5, atol=0)


def test_the_schedule_drives_both_and_the_state_is_kept():
    network = make_network()
    network(torch.zeros(2, 3, 5, 5))
    twin = copy.deepcopy(network)

    def build(of: nn.Module):
        optimizer = build_optimizer(of.parameters(), OPTIONS)
        return optimizer, build_schedule(optimizer, OPTIONS, steps_per_epoch=1)

    optimizer, schedule = build(network)
    others, kernels = optimizer.param_groups
    for step in range(2):
        assert kernels["lr"] == pytest.approx(KERNEL_RATE * others["lr"])
        set_gradients(network, step)
        optimizer.step()
        schedule.step()
    assert others["lr"] == pytest.approx(0.5e-3)
    twin.load_state_dict(network.state_dict())
    again, schedule_again = build(twin)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule_again.load_state_dict(schedule.state_dict())
    for network_, optimizer_ in ((network, optimizer), (twin, again)):
        set_gradients(network_, 7)
        optimizer_.step()
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
