import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.data.loader import Batch
from distill.losses import CRD, AnchorQueue, CompRess, DistillationLoss, Reg, Supervised
from distill.losses.residual_information import ResidualInformation
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.training.distillation import Distillation, MomentumCopy, MultiCropWrapper
from distill.training.teacher import OnlineTeacher
from teachers.load import freeze

CPU = torch.device("cpu")


def tiny_network(seed: int, width: int = 4):
    torch.manual_seed(seed)
    spec = NetworkSpec(
        name="tiny",
        build=lambda size: nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.BatchNorm1d(width)),
        input=InputSpec(2),
    )
    return build_network(spec)


def batch(seed: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 2, 2), dtype=torch.uint8, generator=generator)
    index = torch.arange(size) + seed * size
    return Batch(images, None, torch.full((size,), -1), index, 0, ())


def build(variant: str, **options) -> Distillation:
    student_dim = None if variant == "one-queue" else 4
    student = tiny_network(2)
    loss = CompRess(
        AnchorQueue(20, 5, student_dim),
        projection=nn.Linear(4, 5) if variant == "one-queue" else None,
        momentum=0.9 if variant == "two-queue-momentum" else None,
        **options,
    )
    return around(loss, student)


def around(loss: DistillationLoss, student=None, *, has_teacher=True, weight=1.0) -> Distillation:
    teacher = OnlineTeacher(freeze(tiny_network(1, 5)), CPU, precision="fp32", batch_size=4)
    return Distillation(
        student or tiny_network(2),
        teacher if has_teacher else None,
        loss,
        weight=weight,
        device=CPU,
        precision="fp32",
    )


VARIANTS = ["two-queue-momentum", "two-queue", "one-queue"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_queue_only_fills(variant):
    objective = build(variant)
    assert objective.loss(batch(0)) is None
    objective.after_step(stepped=False)
    assert objective.metrics() == {"num_anchors": 6}
    assert objective.loss(batch(1)).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_follows_the_papers_order(variant):
    """Compare with the anchors of earlier batches, step, follow, and only then enqueue."""
    objective = build(variant, temperature=0.3, student_temperature=0.3)
    first, second = batch(0), batch(1)
    objective.loss(first)
    keys = objective.criterion._to_enqueue[1]
    objective.after_step(stepped=False)
    teacher = objective.teacher
    anchors_t = F.normalize(teacher(first))
    anchors_s = anchors_t if variant == "one-queue" else F.normalize(keys)
    p = F.softmax(F.normalize(teacher(second)) @ anchors_t.T / 0.3, dim=1)
    log_q = F.log_softmax(F.normalize(objective.network(second.view)) @ anchors_s.T / 0.3, dim=1)
    loss = objective.loss(second)
    torch.testing.assert_close(loss, (p * (p.log() - log_q)).sum(1).mean(), rtol=1e-5, atol=1e-6)
    if variant == "two-queue-momentum":
        before = [parameter.clone() for parameter in objective.copy.network.parameters()]
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1)
    objective.after_step(stepped=True)
    assert objective.criterion.queue.num_valid == 12
    if variant == "two-queue-momentum":
        pairs = zip(before, objective.network.parameters(), strict=True)
        expected = [0.9 * old + 0.1 * new for old, new in pairs]
        torch.testing.assert_close(list(objective.copy.network.parameters()), expected)


def test_the_copy_follows_steps_alone():
    objective = build("two-queue-momentum")
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in objective.copy.network.parameters()]
    objective.loss(batch(0))
    objective.after_step(stepped=False)
    assert all(map(torch.equal, before, objective.copy.network.parameters()))


def test_anchors_of_the_momentum_copy_not_of_the_student():
    objective = build("two-queue-momentum")
    objective.loss(batch(0))
    objective.after_step(stepped=False)
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter.mul_(-1)
    images = batch(1)
    objective.loss(images)
    expected = F.normalize(objective.copy(images.view))
    objective.after_step(stepped=True)
    torch.testing.assert_close(objective.criterion.queue.anchors().student[6:], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_teacher_is_neither_trained_nor_saved(variant):
    objective = build(variant)
    trained = {id(parameter) for parameter in objective.parameters()}
    teacher = objective.teacher.network
    assert not trained & {id(parameter) for parameter in teacher.parameters()}
    saved = objective.state_dict()
    assert set(saved) <= {"student", "loss", "copy"}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    objective.train_mode()
    for number in range(3):
        loss = objective.loss(batch(number))
        if loss is not None:
            loss.backward()
        objective.after_step(stepped=loss is not None)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_round_trip(variant):
    first, second = build(variant), build(variant)
    for number in range(4):
        first.loss(batch(number))
        first.after_step(stepped=True)
    with torch.no_grad():
        first.network[0].backbone[1].weight.add_(1)
    second.load_state_dict(first.state_dict(), [first.shard().state])
    for objective in (first, second):
        objective.network.eval()
    torch.testing.assert_close(first.loss(batch(9)), second.loss(batch(9)), rtol=0, atol=0)


def test_without_images_there_are_views_and_embeddings_without_rows():
    objective = build("one-queue")
    nothing = batch(0)._replace(view=torch.empty(0, 3, 0, 0).byte(), index=torch.arange(0))
    assert [view.shape for view in objective._views(nothing)] == [(0, 3, 2, 2)]
    assert objective.teacher(nothing).shape == (0, 5)
    assert [objective.accepts(counts) for counts in ([2], [1, 0, 1], [0, 1])] == [True, True, False]


def test_fill_stops_when_the_queue_is_full():
    objective = build("two-queue-momentum")
    assert [objective.fill(batch(number)) for number in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_filling_leaves_the_student_as_it_was_where_it_has_no_anchors(variant):
    objective = build(variant)
    before = {name: value.clone() for name, value in objective.network.state_dict().items()}
    objective.fill(batch(0))
    same = all(map(torch.equal, before.values(), objective.network.state_dict().values()))
    assert same == (variant != "two-queue")  # whose own BatchNorm sees the batch
    anchors = objective.criterion.queue.anchors()
    torch.testing.assert_close(anchors.teacher, F.normalize(objective.teacher(batch(0))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_stands_beside_that_of_a_student_that_tells_no_anchors_apart(variant):
    objective = build(variant, temperature=0.3, student_temperature=0.2)
    objective.loss(batch(0))
    assert objective.metrics() == {"num_anchors": 0}
    objective.after_step(stepped=False)
    loss, teacher = objective.loss(batch(1)), objective.teacher
    p = F.softmax(F.normalize(teacher(batch(1))) @ F.normalize(teacher(batch(0))).T / 0.3, dim=1)
    chance = (p * (p.log() + math.log(6))).sum(1).mean()
    objective.after_step(stepped=True)
    found = objective.metrics()
    assert found["chance_loss"] == pytest.approx(chance.item(), rel=1e-4)
    assert found["loss_over_chance"] == pytest.approx((loss / chance).item(), rel=1e-4)


def test_chance_is_evaluated_for_one_batch_in_ten():
    objective = build("one-queue")
    calls, chance = [], objective.criterion._chance
    objective.criterion._chance = lambda *rows: calls.append(1) or chance(*rows)
    for number in range(22):
        objective.loss(batch(number))
        objective.after_step(stepped=True)
    assert len(calls) == 3


def seen_through(*seeds: int, size: int = 6) -> Batch:
    first, *others = (batch(seed, size) for seed in seeds)
    return first._replace(further_views=tuple(other.view for other in others))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_several_views_is_the_mean_of_theirs_and_the_first_is_enqueued(variant):
    objective = build(variant)
    objective.network.eval()  # a BatchNorm of each view's own would tell them apart
    objective.loss(batch(0))
    objective.after_step(stepped=False)
    rows = objective.teacher(batch(3))
    objective.teacher = lambda seen: rows  # whatever the student sees
    alone = [objective.loss(batch(3)._replace(view=batch(seed).view)) for seed in (3, 4, 5)]
    loss = objective.loss(seen_through(3, 4, 5))
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    teacher, key, index = objective.criterion._to_enqueue
    assert len(teacher) == len(index) == 6
    if variant == "one-queue":
        assert key is None  # both sides read the teacher's bank
        return
    first = batch(3).view
    expected = objective.copy(first) if objective.copy else objective.network(first)
    torch.testing.assert_close(key, expected)


def test_every_view_reaches_the_student():
    objective = build("one-queue")
    objective.network.eval()  # in training, views of one size share a BatchNorm
    objective.loss(batch(0))
    objective.after_step(stepped=False)
    views = seen_through(3, 4)
    gradients = []
    for changed in (views, views._replace(further_views=(batch(9).view,))):
        objective.network.zero_grad()
        objective.loss(changed).backward()
        gradients.append(objective.network[1].weight.grad.clone())
    assert not torch.allclose(*gradients)


def test_residual_information_of_the_first_two_views_has_its_price():
    price = ResidualInformation(0.5, kappa_e=30.0, kappa_b=4.0)
    plain, compressed = build("one-queue"), build("one-queue", compression=price)
    losses = []
    for objective in (plain, compressed):
        objective.network.load_state_dict(plain.network.state_dict())
        objective.loss(seen_through(0, 1, 2))
        objective.after_step(stepped=False)
        losses.append(objective.loss(seen_through(3, 4, 5)))
    x, y, _ = compressed._parallel([batch(seed).view for seed in (3, 4, 5)])
    torch.testing.assert_close(losses[1], losses[0] + price.penalty(x, y))
    found = [objective.metrics() for objective in (plain, compressed)]
    assert found[1].pop("residual_information") == pytest.approx(price.information(x, y).item())
    assert found[0] == pytest.approx(found[1])  # chance knows nothing of the price


def test_a_share_of_the_loss_is_regression_of_standardized_embeddings():
    plain, mixed = build("one-queue"), build("one-queue", regression_share=0.75)
    losses = []
    for objective in (plain, mixed):
        objective.network.load_state_dict(plain.network.state_dict())
        objective.loss(seen_through(0, 1, 2))
        objective.after_step(stepped=False)
        losses.append(objective.loss(seen_through(3, 4, 5)))

    def standardized(rows):
        rows = rows.double()
        return (rows - rows.mean(0)) / rows.std(0, correction=0)

    target = standardized(plain.teacher(batch(3)))
    views = plain._parallel([batch(seed).view for seed in (3, 4, 5)])
    errors = [(standardized(view) - target).square().mean().item() for view in views]
    expected = 0.25 * losses[0].item() + 0.75 * np.mean(errors)
    assert losses[1].item() == pytest.approx(expected, rel=1e-4)
    found = [objective.metrics() for objective in (plain, mixed)]
    assert found[1].pop("regression_error") == pytest.approx(np.mean(errors), rel=1e-4)
    assert found[0] == pytest.approx(found[1])  # chance knows nothing of the regression


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_teachers_scale_is_no_part_of_the_regression(scale):
    objective = build("one-queue", regression_share=1.0)
    objective.loss(batch(0))
    objective.after_step(stepped=False)
    usual = objective.loss(batch(1)).item()
    teacher = objective.teacher
    objective.teacher = lambda seen: scale * teacher(seen)
    assert objective.loss(batch(1)).item() == pytest.approx(usual, rel=1e-5)


def test_the_loss_is_of_student_and_teacher_times_the_weight():
    objective = around(Reg(5, 4), weight=3.0)
    images = batch(0)
    predicted = objective.criterion.head(objective.network(images.view))
    expected = 2 - 2 * F.cosine_similarity(predicted, objective.teacher(images)).mean()
    torch.testing.assert_close(objective.loss(images), 3 * expected)


def test_heads_are_trained_and_not_part_of_the_student():
    objective = around(Reg(5, 4))
    trained = {id(parameter) for parameter in objective.parameters()}
    assert {id(parameter) for parameter in objective.criterion.parameters()} < trained
    assert not trained & {id(parameter) for parameter in objective.teacher.network.parameters()}
    of_student = {id(parameter) for parameter in objective.student.parameters()}
    assert not of_student & {id(parameter) for parameter in objective.criterion.parameters()}
    objective.loss(batch(0)).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_without_a_teacher_there_are_labels():
    objective = around(Supervised(4, 3), has_teacher=False)
    images = batch(0)._replace(label=torch.arange(6) % 3)
    logits = objective.criterion.head(objective.network(images.view))
    torch.testing.assert_close(objective.loss(images), F.cross_entropy(logits, images.label))


@pytest.mark.parametrize("stepped", [True, False])
def test_memories_follow_every_batch(stepped):
    objective = around(CRD(5, 4, torch.arange(80), head_dim=3, num_negatives=4))
    before = objective.criterion.teacher_memory.clone()
    objective.loss(batch(0))
    objective.after_step(stepped=stepped)
    changed = (objective.criterion.teacher_memory != before).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 74


def test_state_of_memories_round_trip():
    first, second = (around(CRD(5, 4, torch.arange(80), head_dim=3, num_negatives=4))
                     for _ in range(2))  # fmt: skip
    for number in range(3):
        first.loss(batch(number))
        first.after_step(stepped=True)
    with torch.no_grad():
        first.network[0].backbone[1].weight.add_(1)
    assert first.shard() is None
    second.load_state_dict(first.state_dict(), [])
    torch.testing.assert_close(first.loss(batch(9)), second.loss(batch(9)), rtol=0, atol=0)


def with_dropout() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_the_copy_is_the_moving_average_of_the_parameters():
    student = with_dropout()
    average = {k: v.clone() for k, v in student.named_parameters()}
    follower = MomentumCopy(student, momentum=0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        follower.update(student)
        average = {k: 0.9 * average[k] + 0.1 * v.detach() for k, v in student.named_parameters()}
    for name, parameter in follower.network.named_parameters():
        torch.testing.assert_close(parameter, average[name])
        assert not parameter.requires_grad


def test_batch_norm_keeps_statistics_of_its_own():
    student = with_dropout().train()
    follower = MomentumCopy(student, momentum=0.0)
    assert follower.network[1].training
    assert not follower.network[2].training  # no dropout in the anchors
    images = torch.randn(16, 3) + 5
    follower(images)
    assert not torch.equal(follower.network[1].running_mean, student[1].running_mean)
    student(images), student(images)
    before = follower.network[1].running_mean.clone()
    follower.update(student)
    assert torch.equal(follower.network[1].running_mean, before)


def test_it_gives_no_gradient_and_leaves_the_student_alone():
    student = with_dropout()
    before = copy.deepcopy(student.state_dict())
    follower = MomentumCopy(student, momentum=0.5)
    assert not follower(torch.randn(4, 3)).requires_grad
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_the_copys_state_round_trip():
    first, second = (
        MomentumCopy(with_dropout(), momentum=0.5),
        MomentumCopy(with_dropout(), momentum=0.5),
    )
    with torch.no_grad():
        first.network[0].weight.add_(1)
    first(torch.randn(8, 3))
    second.load_state_dict(first.state_dict())
    for key, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[key])


def test_views_share_a_pass():
    shapes = []

    class Sized(nn.Module):
        def forward(self, images):
            shapes.append(tuple(images.shape))
            return images.sum((1, 2, 3))[:, None]

    views = [torch.randn(3, 3, 8, 8) for _ in range(2)]
    found = MultiCropWrapper(Sized())(views)
    assert shapes == [(6, 3, 8, 8)]
    for view, embedding in zip(views, found, strict=True):
        torch.testing.assert_close(embedding, view.sum((1, 2, 3))[:, None])
    empty = MultiCropWrapper(Sized())([torch.empty(0, 3, 8, 8)] * 2)
    assert [part.shape for part in empty] == [(0, 1)] * 2
