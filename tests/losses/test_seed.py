import numpy as np
import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.anchors import AnchorQueue
from distill.losses.base import BuildContext
from distill.losses.seed import SEED

K = 10


def build(*, mask_self: bool = True, temperatures: tuple[float, float] = (0.3, 0.2)) -> SEED:
    torch.manual_seed(1)
    return SEED(
        AnchorQueue(K, 5, dtype=torch.float64),
        teacher_dim=5,
        student_dim=4,
        temperature=temperatures[0],
        student_temperature=temperatures[1],
        mask_self=mask_self,
    ).double()


def fill(loss: SEED, index: Tensor, seed: int) -> Tensor:
    teacher = torch.randn(
        len(index), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    loss.queue.enqueue(teacher, None, index)
    return teacher


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def by_hand(loss: SEED, rows, anchors: np.ndarray, images: list[int]) -> float:
    layers = [loss.head[0], loss.head[2]]
    weights = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in layers]
    total = 0.0
    for t, s, image in zip(
        rows.teacher.numpy(), rows.student.numpy(), rows.index.tolist(), strict=True
    ):
        hidden = np.maximum(weights[0][0] @ s + weights[0][1], 0)
        z, t = unit(weights[1][0] @ hidden + weights[1][1]), unit(t)  # noqa: PLW2901
        others = [
            unit(a)
            for a, own in zip(anchors, images, strict=True)
            if not (loss.mask_self and own == image)
        ]
        seen = [t, *others]
        p = np.exp([t @ a / loss.temperature for a in seen])
        q = np.exp([z @ a / loss.student_temperature for a in seen])
        p, q = p / p.sum(), q / q.sum()
        total -= sum(p_j * np.log(q_j) for p_j, q_j in zip(p, q, strict=True))
    return total / 7


@pytest.mark.parametrize("mask_self", [True, False])
def test_it_is_the_papers_formula(rows, mask_self):
    loss = build(mask_self=mask_self)
    index = torch.tensor([91, 92, int(rows.index[2]), 93, int(rows.index[5])])
    anchors = fill(loss, index, 2)
    expected = by_hand(loss, rows, anchors.numpy(), index.tolist())
    assert loss(*rows).item() == pytest.approx(expected, rel=1e-10)


def test_gradients(check_gradients, rows):
    loss = build()
    fill(loss, torch.tensor([91, 92, int(rows.index[2]), 93]), 2)
    check_gradients(loss)


def test_the_published_temperature_is_all_but_the_positive(rows):
    loss = build(temperatures=(1e-4, 0.2))
    fill(loss, torch.arange(90, 95), 2)
    z = torch.nn.functional.normalize(loss.head(rows.student))
    t = torch.nn.functional.normalize(rows.teacher)
    logits = torch.cat([(z * t).sum(1, keepdim=True), z @ loss.queue.anchors().teacher.T], 1) / 0.2
    torch.testing.assert_close(loss(*rows), -logits.log_softmax(1)[:, 0].mean())


def test_the_batch_is_enqueued_after_its_loss(rows):
    loss = build()
    assert loss(*rows) is None
    assert loss.metrics() == {"num_anchors": 0}
    loss.after_step()
    assert loss.metrics() == {"num_anchors": 7}
    first = loss(*rows).item()
    assert loss(*rows).item() == first
    loss.after_step()
    assert loss.queue.num_valid == K
    second, wrapped, first_left = rows.index[:3], rows.index[3:], rows.index[4:]
    expected = torch.cat([wrapped, first_left, second])  # fourteen rows in ten places
    assert torch.equal(loss.queue.anchors().image_index, expected)
    assert loss.queue.pointer == 4


def test_the_queue_is_part_of_the_state(rows):
    first, second = build(), build()
    fill(first, torch.arange(90, 97), 3)
    second.load_state_dict(first.state_dict())
    assert second(*rows).item() == first(*rows).item()
    assert second.queue.pointer == 7


def test_options_reach_the_loss():
    assert SEED.Options().mask_self
    for mask_self in (True, False):
        options = SEED.Options(queue_size=K, temperature=0.3, mask_self=mask_self)
        loss = SEED.build(options, BuildContext(student_dim=4, teacher_dim=5))
        assert (loss.mask_self, loss.temperature, loss.queue.size) == (mask_self, 0.3, K)


def test_mistakes_are_told_at_once():
    with pytest.raises(DistillError, match="student_temperature is 0"):
        SEED(AnchorQueue(K, 5), teacher_dim=5, student_dim=4, student_temperature=0)
    with pytest.raises(DistillError, match="one bank that is whole"):
        SEED(AnchorQueue(K, 5, 4), teacher_dim=5, student_dim=4)
