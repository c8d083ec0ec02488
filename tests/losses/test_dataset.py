"""Anchors of all images: what is in which slot, when, on which rank, and after a restart."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.dataset_anchors import DatasetAnchors

IMAGES = np.array([3, 4, 8, 9, 11, 20, 21])
TABLE = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


def rows(index: np.ndarray) -> torch.Tensor:
    return TABLE[torch.from_numpy(index)]


def one_bank(shard=(0, 1), **options) -> DatasetAnchors:
    return DatasetAnchors(IMAGES, rows, 5, shard=shard, **options)


def two_banks(shard=(0, 1), **options) -> DatasetAnchors:
    return DatasetAnchors(IMAGES, rows, 5, 3, shard=shard, **options)


def visit(bank: DatasetAnchors, *images: int, seed: int = 0) -> torch.Tensor:
    """Enqueue images; the teacher's rows given are of another view, as with several views."""
    student = torch.randn(len(images), 3, generator=torch.Generator().manual_seed(seed))
    bank.enqueue(TABLE[list(images)] + 1, student, torch.tensor(images))
    return F.normalize(student)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 10])
def test_one_bank_holds_every_image_from_the_start_over_any_number_of_ranks(num_ranks):
    banks = [one_bank((rank, num_ranks)) for rank in range(num_ranks)]
    assert [bank.num_valid for bank in banks] == [7] * num_ranks
    found = {}
    for bank in banks:
        anchors = bank.anchors()
        assert anchors.teacher is anchors.student
        found |= dict(zip(anchors.image_index.tolist(), anchors.teacher, strict=True))
    assert sorted(found) == IMAGES.tolist()
    for image, row in found.items():
        torch.testing.assert_close(row, F.normalize(TABLE[image], dim=0))
    assert max(len(bank.anchors()) for bank in banks) == -(-7 // num_ranks)


def test_one_bank_takes_nothing_in_and_saves_nothing():
    bank = one_bank()
    before = bank.anchors().teacher.clone()
    bank.enqueue(torch.ones(2, 5), None, torch.tensor([3, 4]))
    assert torch.equal(bank.anchors().teacher, before)
    assert bank.state_dict() == {}
    bank.load_state_dict()


def test_many_rows_are_looked_up_in_chunks(monkeypatch):
    monkeypatch.setattr("distill.losses.dataset_anchors._CHUNK", 3)
    asked = []
    bank = DatasetAnchors(IMAGES, lambda index: asked.append(len(index)) or rows(index), 5)
    assert asked == [3, 3, 1]
    torch.testing.assert_close(bank.anchors().teacher, F.normalize(TABLE[IMAGES]))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_two_banks_have_an_image_from_its_first_visit_and_overwrite_it_later(num_ranks):
    banks = [two_banks((rank, num_ranks)) for rank in range(num_ranks)]
    expected = {}
    for seed, images in enumerate([(20, 3, 9), (9, 8), (21, 20), (4, 11, 3)]):
        for bank in banks:
            student = visit(bank, *images, seed=seed)
        expected |= dict(zip(images, student, strict=True))
        found = {}
        for bank in banks:
            anchors = bank.anchors()
            assert bank.num_valid == len(expected)
            for image, t, s in zip(
                anchors.image_index.tolist(), anchors.teacher, anchors.student, strict=True
            ):
                torch.testing.assert_close(t, F.normalize(TABLE[image], dim=0))
                found[image] = s
        assert found.keys() == expected.keys()
        for image, row in found.items():
            torch.testing.assert_close(row, expected[image])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 1), (1, 2)])
def test_a_bank_goes_on_with_any_number_of_ranks_as_if_nothing_had_been(before, after):
    saved = [two_banks((rank, before)) for rank in range(before)]
    for bank in saved:
        visit(bank, 20, 3, 9, 4, seed=1)
    states = [bank.state_dict() for bank in saved]
    assert all(state["student"].shape[1] == 3 and len(state) == 3 for state in states)
    for rank in range(after):
        alone, restored = two_banks((rank, after)), two_banks((rank, after))
        visit(alone, 20, 3, 9, 4, seed=1)
        restored.load_state_dict(*states)
        for bank in (alone, restored):
            visit(bank, 8, 3, seed=2)
        assert restored.num_valid == alone.num_valid == 5
        for name, expected in vars(alone.anchors()).items():
            assert torch.equal(getattr(restored.anchors(), name), expected)


def test_the_dtype_is_the_banks_own():
    bank = two_banks(dtype=torch.bfloat16)
    expected = visit(bank, 3, 4)
    assert bank.anchors().student.dtype == bank.anchors().teacher.dtype == torch.bfloat16
    torch.testing.assert_close(bank.anchors().student.float(), expected, rtol=0.01, atol=0.01)


def test_mistakes_are_told():
    with pytest.raises(DistillError, match="size is 0"):
        DatasetAnchors(IMAGES[:0], rows, 5)
    bank = two_banks()
    with pytest.raises(DistillError, match=r"student has shape \(1, 2\)"):
        bank.enqueue(torch.ones(1, 5), torch.ones(1, 2), torch.tensor([3]))
    other = DatasetAnchors(IMAGES[:6], rows, 5, 3)
    with pytest.raises(DistillError, match="not those of 7 images with rows of width 3"):
        bank.load_state_dict(other.state_dict())
    assert "7 images x 5 and 3, 0 real" in repr(bank)
