import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.data.loader import Batch
from distill.losses.base import DistillationLoss
from distill.losses.crd import CRD
from distill.losses.reg import Reg
from distill.losses.supervised import Supervised
from distill.models.networks import InputSpec, NetworkSpec, build_network
from distill.training.imitation import Imitation
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
    return Batch(images, None, torch.arange(size) % 3, torch.arange(size), 0, ())


def build(loss: DistillationLoss, *, with_teacher: bool = True, **options) -> Imitation:
    network = freeze(tiny_network(1, 5))
    teacher = OnlineTeacher(network, CPU, precision="fp32", batch_size=None)
    given = {"device": CPU, "precision": "fp32", **options}
    return Imitation(tiny_network(2), teacher if with_teacher else None, loss, **given)


def test_the_loss_is_of_student_and_teacher_times_the_weight():
    objective = build(Reg(5, 4), weight=3.0)
    images = batch(0)
    predicted = objective.criterion.head(objective.network(images.view))
    expected = 2 - 2 * F.cosine_similarity(predicted, objective.teacher(images)).mean()
    torch.testing.assert_close(objective.loss(images), 3 * expected)


def test_heads_are_trained_and_not_part_of_the_student():
    objective = build(Reg(5, 4))
    trained = {id(parameter) for parameter in objective.parameters()}
    assert {id(parameter) for parameter in objective.criterion.parameters()} < trained
    assert not trained & {id(parameter) for parameter in objective.teacher.network.parameters()}
    of_student = {id(parameter) for parameter in objective.network.parameters()}
    assert not of_student & {id(parameter) for parameter in objective.criterion.parameters()}
    objective.loss(batch(0)).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_without_a_teacher_there_are_labels():
    objective = build(Supervised(4, 3), with_teacher=False)
    images = batch(0)
    logits = objective.criterion.head(objective.network(images.view))
    torch.testing.assert_close(objective.loss(images), F.cross_entropy(logits, images.label))


@pytest.mark.parametrize("stepped", [True, False])
def test_memories_follow_every_batch(stepped):
    objective = build(CRD(5, 4, torch.arange(8), head_dim=3, num_negatives=4))
    before = objective.criterion.teacher_memory.clone()
    objective.loss(batch(0))
    objective.after_step(stepped=stepped)
    changed = (objective.criterion.teacher_memory != before).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 2


def test_state_round_trip():
    first, second = (build(CRD(5, 4, torch.arange(8), head_dim=3, num_negatives=4))
                     for _ in range(2))  # fmt: skip
    for number in range(3):
        first.loss(batch(number))
        first.after_step(stepped=True)
    with torch.no_grad():
        first.network[0].backbone[1].weight.add_(1)
    assert first.shard() is None
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first.loss(batch(9)), second.loss(batch(9)), rtol=0, atol=0)


def test_two_images_are_enough():
    objective = build(Reg(5, 4))
    assert [objective.accepts(counts) for counts in ([2], [1, 0, 1], [0, 1])] == [True, True, False]
