"""The pre-training objective, with one process and with two."""

import pytest
import torch

from distill import distributed
from distill.data.loader import Batch
from distill.models.networks import prepare_for_device
from distill.training.checkpoints import Progress
from distill.training.configuration import PretrainConfig, with_options
from distill.training.pretraining import Pretraining
from distill.training.setup import prepare_pretraining
from teachers import c_simclr
from teachers.byol import BYOL
from teachers.c_byol import CBYOL
from teachers.c_simclr import CSimCLR
from teachers.resnet import build_backbone
from teachers.simclr import SimCLR

CPU = torch.device("cpu")
NOTHING = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # a distortion that changes nothing
WIDTHS = {"hidden_dim": 16, "projection_dim": 8}


def batch_of(num_images: int, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (2, num_images, 3, 16, 16), generator=generator).byte()
    distortion = torch.tensor(NOTHING).repeat(num_images, 2, 1)
    labels, index = torch.zeros(num_images), torch.arange(num_images)
    return Batch(views[0], views[1], labels, index, 0, (), distortion)


def pretraining(method_type, *, momentum: float | None = None, **options) -> Pretraining:
    torch.manual_seed(0)
    backbone = prepare_for_device(build_backbone("resnet18x0.125-small", image_size=16), CPU)
    method = method_type(backbone.embedding_dim, **WIDTHS, **options)
    return Pretraining(
        backbone,
        method,
        beta=(lambda step: 0.5 + step) if method_type in (CSimCLR, CBYOL) else None,
        target_momentum=None if momentum is None else lambda step: momentum,
        seed=3,
        device=CPU,
        precision="fp32",
    )


def test_the_target_is_what_the_copy_says_of_the_same_views():
    objective = pretraining(BYOL, momentum=0.9)
    objective.train_mode()
    seen = []

    forward = objective.online.method.forward
    objective.online.method.forward = lambda h, t: seen.append((h, t)) or forward(h, t)
    objective.loss(batch_of(6))
    hidden, target = seen[0]
    torch.testing.assert_close(hidden, target)  # the copy starts equal, its BatchNorm trains too
    assert hidden.requires_grad
    assert not target.requires_grad


def test_the_target_follows_by_the_momentum_of_the_step():
    objective = pretraining(BYOL, momentum=0.75)
    copy = [p.clone() for p in objective.copy.network.parameters()]
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1.0)
    objective.after_step(stepped=False)
    for before, after in zip(copy, objective.copy.network.parameters(), strict=True):
        assert torch.equal(before, after)
    objective.after_step(stepped=True)
    for before, after in zip(copy, objective.copy.network.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25)


def test_beta_is_that_of_the_step_and_logged():
    objective = pretraining(CSimCLR)
    for step in range(2):
        loss = objective.loss(batch_of(4))
        objective.after_step(stepped=True)
        logged = objective.metrics()
        assert logged["beta"] == 0.5 + step
        residual = logged["i_xzx_y"] + logged["i_yzy_x"]
        information = logged["i_y_zx"] + logged["i_x_zy"]
        assert loss.item() == pytest.approx((0.5 + step) * residual - information, rel=1e-5)


@pytest.mark.parametrize("method_type", [CSimCLR, CBYOL])
def test_a_restored_objective_goes_on_as_it_would_have(method_type):
    momentum = 0.9 if method_type is CBYOL else None
    ours, again = (pretraining(method_type, momentum=momentum) for _ in range(2))
    for objective in (ours, again):
        objective.train_mode()
    ours.loss(batch_of(4))
    with torch.no_grad():  # a step, which the copy follows in part
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    ours.after_step(stepped=True)
    again.load_state_dict(ours.state_dict())
    expected = ours.loss(batch_of(4, seed=1)).item()  # its z is the second draw
    assert again.loss(batch_of(4, seed=1)).item() == expected
    assert pretraining(method_type, momentum=momentum).loss(batch_of(4, seed=1)).item() != expected


def test_distortions_are_applied_to_their_view():
    objective, batch = pretraining(SimCLR), batch_of(4)
    plain = objective._distorted(batch)
    torch.testing.assert_close(plain[:4], batch.view / 255)
    batch.distortion[:, 1, -1] = 1.0  # solarize the second views
    changed = objective._distorted(batch)
    assert torch.equal(changed[:4], plain[:4])
    assert not torch.equal(changed[4:], plain[4:])


def test_held_out_images_are_not_trained_on(tmp_path):
    options = {"data": "digits", "image_size": 16, "width": 0.125, "holdout": 0.3, **WIDTHS}
    options |= {"batch_size": 503, "epochs": 1, "num_workers": 0, "output": tmp_path / "run"}
    config = with_options(PretrainConfig(), options, source="test")
    setup = prepare_pretraining(config, CPU)
    batches = setup.batches(Progress())
    seen = [index for batch in batches for index in batch.index.tolist()]
    assert sorted(seen) == setup.images.trained.tolist()
    assert len(seen) == 1006  # of 1437


def test_ranks_need_equally_many_images():
    objective = pretraining(SimCLR)
    counts = ([2], [1], [3, 3], [1, 1], [3, 2])
    assert [objective.accepts(each) for each in counts] == [True, False, True, False, False]


def _step(method_name: str, num_images: int) -> tuple[float, list[torch.Tensor]]:
    """Take the loss and the gradients of a batch, of which every rank has its part."""
    c_simclr.sample = lambda mu, kappa, generator: mu  # a fixed z
    method_type, momentum = {
        "simclr": (SimCLR, None),
        "c-simclr": (CSimCLR, None),
        "byol": (BYOL, 0.9),
    }[method_name]
    objective = pretraining(method_type, momentum=momentum)
    objective.train_mode()
    batch = batch_of(num_images).split(distributed.world_size())[distributed.rank()]
    loss = objective.loss(batch)
    loss.backward()
    value = distributed.mean_over_ranks(loss.item())
    return value, [parameter.grad for parameter in objective.parameters()]


def _steps(num_images: int) -> dict[str, tuple[float, list[torch.Tensor]]]:
    return {name: _step(name, num_images) for name in ("simclr", "c-simclr", "byol")}


@pytest.mark.ddp
def test_two_processes_are_one_with_the_global_batch(run_ranks, monkeypatch):
    monkeypatch.setattr(c_simclr, "sample", c_simclr.sample)  # put back what _step replaces
    alone = _steps(8)
    for rank in run_ranks(_steps, 2, 8):
        for name, (loss, gradients) in rank.items():
            expected_loss, expected = alone[name]
            assert loss == pytest.approx(expected_loss, rel=1e-5), name
            for ours, theirs in zip(gradients, expected, strict=True):
                difference = (ours - theirs).norm()
                # byol goes through three BatchNorms of 16 rows, which magnify float32's rounding
                tolerance = 5e-5 if name == "byol" else 1e-5
                assert difference <= tolerance * theirs.norm() + 1e-7, name
