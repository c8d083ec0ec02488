import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from teachers.c_byol import CBYOL, Direction, c_byol_loss

CASES = [(16384, 10, 1, 2), (16384, 10, 1, 5), (1024, 10, 0.5, 1)]


def along_the_sphere(gradient, point):
    """Drop a gradient's part along a unit vector: where it cannot move, extensions may differ."""
    return gradient - (gradient * point).sum(1, keepdims=True) * point


@pytest.mark.parametrize(("kappa_e", "kappa_b", "beta", "w"), CASES)
def test_agrees_with_the_original_program(ceb, given, agrees, kappa_e, kappa_b, beta, w):
    names = ("hidden", "hidden2", "z", "z2", "mu", "mu2", "target_proj", "target_proj2")
    inputs = {name: given(name) for name in names}
    (y1, t2), (y2, t1) = inputs["hidden"].chunk(2), inputs["hidden2"].chunk(2)
    b2, b1 = F.normalize(inputs["target_proj"]), F.normalize(inputs["target_proj2"])
    outcome = c_byol_loss(
        Direction(y1, t2, inputs["mu"], inputs["z"], b1),
        Direction(y2, t1, inputs["mu2"], inputs["z2"], b2),
        kappa_e=kappa_e,
        kappa_b=kappa_b,
        regression_weight=w,
        beta=beta,
    )
    outcome.loss.backward()
    case = f"cbyol_ke{kappa_e}_kb{kappa_b}_beta{beta}_w{w}"
    agrees(
        case,
        loss=outcome.loss,
        **{name: value for name, value in outcome.logged.items() if f"{case}/{name}" in ceb},
        grad_hidden=inputs["hidden"].grad,
        grad_hidden2=inputs["hidden2"].grad,
        grad_target_proj=inputs["target_proj"].grad,
        grad_target_proj2=inputs["target_proj2"].grad,
    )
    for suffix in ("", "2"):
        theirs = np.split(ceb[f"{case}/grad_z_mu{suffix}"], 2, axis=1)
        for name, gradient in zip(("z", "mu"), theirs, strict=True):
            leaf = inputs[name + suffix]
            point = leaf.detach().numpy()
            ours = along_the_sphere(leaf.grad.numpy(), point)
            np.testing.assert_allclose(
                ours, along_the_sphere(gradient, point), atol=1e-4 * np.abs(gradient).max()
            )


def transparent(backward_encoder: str) -> CBYOL:
    """Return a method whose MLPs are the identity and whose samples are the mean direction."""
    method = CBYOL(
        8, hidden_dim=4, projection_dim=4, kappa_e=1e7, backward_encoder=backward_encoder
    )
    for name in ("projector", "predictor", "backward_projector"):
        setattr(method, name, nn.Identity())
    return method


@pytest.mark.parametrize(("backward_encoder", "aligned"), [("same-view", 0), ("cross-view", 1)])
def test_which_view_foretells_z(backward_encoder, aligned):
    """The residual is least when b has the direction of z: target of the same or other view."""
    first, second = torch.eye(4)[:2], torch.eye(4)[2:]
    targets = [torch.cat([first, second]), torch.cat([second, first])]
    hidden = torch.cat([first, second])
    residuals = [
        transparent(backward_encoder)(hidden, target).logged["i_xzx_y"].item() for target in targets
    ]
    assert residuals[aligned] < residuals[1 - aligned] - 5  # kappa_b (1 - cos) = 10, up to noise


def test_regression_is_across_views_in_both():
    for backward_encoder in ("same-view", "cross-view"):
        hidden = torch.eye(4)
        target = hidden.roll(2, dims=0)  # the target of each view is the other's direction
        byol_loss = transparent(backward_encoder)(hidden, target).logged["byol_loss"]
        np.testing.assert_allclose(byol_loss, 0, atol=1e-3)


def test_information_is_bounded_by_the_number_of_views():
    """Orthogonal images, every b where its z is: z tells which of the 2B - 1 views is the other."""
    method = CBYOL(8, hidden_dim=4, projection_dim=4, kappa_e=1e7, kappa_b=100)
    for name in ("projector", "predictor", "backward_projector"):
        setattr(method, name, nn.Identity())
    hidden = torch.eye(4).repeat(2, 1)
    information = method(hidden, hidden).logged
    np.testing.assert_allclose(information["i_y_zx"], np.log(7), rtol=1e-3)
    np.testing.assert_allclose(information["i_x_zy"], np.log(7), rtol=1e-3)


def test_everything_but_the_head_learns():
    method = CBYOL(8, hidden_dim=4, projection_dim=4)
    hidden = torch.randn(6, 4, requires_grad=True)
    method(hidden, torch.randn(6, 4)).loss.backward()
    learning = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert learning == {"projector", "predictor", "backward_projector"}
    assert hidden.grad is not None


def test_a_generator_decides_the_samples():
    torch.manual_seed(0)
    method = CBYOL(8, hidden_dim=4, projection_dim=4, kappa_e=10.0)
    hidden, target = torch.randn(6, 4), torch.randn(6, 4)
    losses = [
        method(hidden, target, generator=torch.Generator().manual_seed(seed)).loss.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
