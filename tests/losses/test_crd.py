import numpy as np
import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.crd import CRD

N, M, D = 12, 9, 3
IMAGES = torch.arange(N) * 2 + 6  # the images trained on: 6, 8, ..., 28 of 30


def build(**options) -> CRD:
    torch.manual_seed(1)
    given = {
        "head_dim": D,
        "num_negatives": M,
        "temperature": 0.4,
        "memory_momentum": 0.3,
        "seed": 5,
    }
    return CRD(5, 4, IMAGES, **{**given, **options}).double()


@pytest.fixture
def trained(rows):
    return rows._replace(index=torch.tensor([8, 28, 6, 20, 22, 14, 10]))


def draws(monkeypatch, loss: CRD) -> list[Tensor]:
    """Keep what the loss draws."""
    kept, draw = [], loss._draw

    def keep(place: Tensor) -> Tensor:
        kept.append(draw(place))
        return kept[-1]

    monkeypatch.setattr(loss, "_draw", keep)
    return kept


def mapped(loss: CRD, side: str, row: np.ndarray) -> np.ndarray:
    head = getattr(loss, f"{side}_head")
    vector = head.weight.detach().numpy() @ row + head.bias.detach().numpy()
    return vector / np.sqrt((vector**2).sum())


def by_hand(loss: CRD, rows, drawn: Tensor, z: list[float] | None) -> tuple[float, list[float]]:
    """Return the loss, and Z of both directions, taken from these rows where none is given."""
    memories = {side: getattr(loss, f"{side}_memory").numpy().copy()
                for side in ("teacher", "student")}  # fmt: skip
    exponentials = []
    for side, other in (("student", "teacher"), ("teacher", "student")):
        table = np.empty((7, M + 1))
        for i in range(7):
            place = (int(rows.index[i]) - 6) // 2
            vector = mapped(loss, side, getattr(rows, side)[i].numpy())
            for position, j in enumerate([place, *drawn[i].tolist()]):
                table[i, position] = np.exp(vector @ memories[other][j] / loss.temperature)
        exponentials.append(table)
    z = [table.mean() * N for table in exponentials] if z is None else z
    total, noise = 0.0, M / N
    for table, constant in zip(exponentials, z, strict=True):
        for row in table / constant:
            total -= np.log(row[0] / (row[0] + noise))
            total -= sum(np.log(noise / (p + noise)) for p in row[1:])
    return total / 7, z


def test_it_is_the_papers_formula_with_the_first_batch_s_constants(monkeypatch, trained):
    loss = build()
    kept = draws(monkeypatch, loss)
    first = loss(*trained)
    expected, z = by_hand(loss, trained, kept[0], None)
    assert first.item() == pytest.approx(expected, rel=1e-10)
    loss.after_step()
    second = loss(*trained._replace(student=-2 * trained.student))
    expected, _ = by_hand(loss, trained._replace(student=-2 * trained.student), kept[1], z)
    assert second.item() == pytest.approx(expected, rel=1e-10)
    assert not torch.equal(kept[0], kept[1])


def test_negatives_are_other_images_evenly(trained):
    loss = build(num_negatives=4000)
    place = loss.place[trained.index]
    drawn = loss._draw(place)
    assert not (drawn == place[:, None]).any()
    for row, own in zip(drawn, place, strict=True):
        counts = torch.bincount(row, minlength=N)
        assert counts[own] == 0
        others = torch.cat([counts[:own], counts[own + 1 :]])
        assert (others - 4000 / (N - 1)).abs().max() < 100  # five standard deviations
    assert torch.equal(build(num_negatives=4000)._draw(place), drawn)
    assert not torch.equal(build(num_negatives=4000, seed=6)._draw(place), drawn)


def test_gradients(check_gradients, trained, rows, monkeypatch):
    loss = build()
    loss(*trained)  # fixes the constants
    rows.index.copy_(trained.index)

    def the_same_draw() -> None:
        loss._num_draws = 1 + 7
        loss.log_z.fill_(2.0)

    check_gradients(loss, the_same_draw)


def test_memories_follow_after_the_loss(trained):
    loss = build()
    before = {side: getattr(loss, f"{side}_memory").numpy().copy()
              for side in ("teacher", "student")}  # fmt: skip
    loss(*trained)
    assert np.array_equal(loss.teacher_memory.numpy(), before["teacher"])
    loss.after_step()
    for side, old in before.items():
        expected = old
        for i, image in enumerate(trained.index.tolist()):
            new = mapped(loss, side, getattr(trained, side)[i].numpy())
            joined = 0.3 * old[(image - 6) // 2] + 0.7 * new
            expected[(image - 6) // 2] = joined / np.linalg.norm(joined)
        np.testing.assert_allclose(getattr(loss, f"{side}_memory").numpy(), expected, rtol=1e-12)
    kept = loss.teacher_memory.clone()
    loss.after_step()  # nothing new
    assert torch.equal(loss.teacher_memory, kept)


def test_a_continued_run_draws_and_remembers_the_same(trained):
    first, second = build(), build(seed=5)
    for _ in range(3):
        first(*trained)
        first.after_step()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert first(*trained).item() == second(*trained).item()
        first.after_step(), second.after_step()
    assert torch.equal(first.student_memory, second.student_memory)


def test_mistakes_are_told_at_once():
    for options, message in (
        ({"temperature": 0}, "temperature is 0"),
        ({"memory_momentum": 1.5}, "memory_momentum is 1.5; it must be between 0 and 1"),
        ({"num_negatives": 0}, "num_negatives is 0"),
    ):
        with pytest.raises(DistillError, match=message):
            build(**options)
    with pytest.raises(DistillError, match="CRD got 1 images"):
        CRD(5, 4, torch.tensor([3]))
