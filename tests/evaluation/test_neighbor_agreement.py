import tracemalloc

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.agreement import neighbor_agreement


def by_definition(teacher: np.ndarray, student: np.ndarray, k: int, images) -> float:
    shares = []
    for i in images:
        nearest = []
        for rows in (teacher, student):
            units = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            cosine = units @ units[i]
            others = [j for j in np.argsort(-cosine) if j != i]
            nearest.append(set(others[:k]))
        shares.append(len(nearest[0] & nearest[1]) / k)
    return float(np.mean(shares))


def related(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(num_images, 9)).astype(np.float16)
    return teacher, teacher[:, :5] + rng.normal(size=(num_images, 5)).astype(np.float16)


@pytest.mark.parametrize("block_bytes", [36 * 7, 2**20])
def test_the_definition(block_bytes: int):
    teacher, student = related(60)
    found = neighbor_agreement(teacher, student, ks=(10, 1, 59, 3), block_bytes=block_bytes)
    assert list(found.agreement) == [1, 3, 10, 59]
    for k, agreement in found.agreement.items():
        assert agreement == pytest.approx(by_definition(teacher, student, k, range(60)))
    assert found.agreement[59] == found.chance(59) == 1
    assert found.num_images == found.num_sampled == 60


def test_a_hand_worked_case():
    # On a circle, in degrees: 0, 10, 50 and 110. The student swaps the last two images.
    angles = np.deg2rad([0, 10, 50, 110])
    teacher = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    student = teacher[[0, 1, 3, 2]] * 4
    # Nearest to each: 1, 0, 1, 2 and 1, 0, 3, 1: images 0 and 1 agree. Two nearest: {1, 2},
    # {0, 2}, {0, 1}, {1, 2} and {1, 3}, {0, 3}, {1, 3}, {0, 1}: one in common each.
    found = neighbor_agreement(teacher, student, ks=(1, 2))
    assert found.agreement == {1: 2 / 4, 2: 4 / 8}
    assert found.chance(1) == 1 / 3


def test_the_same_neighborhoods_agree_whatever_the_scale_and_width():
    teacher, _ = related(40)
    student = np.hstack([teacher * 3.0, np.zeros((40, 2))])
    assert set(neighbor_agreement(teacher, student).agreement.values()) == {1.0}


def test_unrelated_embeddings_agree_by_chance():
    rng = np.random.default_rng(0)
    found = neighbor_agreement(rng.normal(size=(400, 20)), rng.normal(size=(400, 20)), ks=(40,))
    assert found.chance(40) == 40 / 399
    assert found.agreement[40] == pytest.approx(40 / 399, abs=0.01)


def test_a_sample_looks_among_all():
    teacher, student = related(80)
    found = [
        neighbor_agreement(teacher, student, ks=(4,), num_sampled=30, seed=seed)
        for seed in (1, 1, 2)
    ]
    images = np.random.default_rng(1).permutation(80)[:30]
    expected = by_definition(teacher, student, 4, images)
    assert found[0].agreement[4] == found[1].agreement[4] == pytest.approx(expected)
    assert found[0].agreement != found[2].agreement
    assert (found[0].num_images, found[0].num_sampled) == (80, 30)


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for num_images in (1500, 6000):
        teacher = np.random.default_rng(0).normal(size=(num_images, 64)).astype(np.float16)
        np.save(tmp_path / "rows.npy", teacher)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        tracemalloc.start()
        neighbor_agreement(mapped, mapped[:, :32], ks=(3,), block_bytes=2**17)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1.3 * min(peaks)  # the numbers of the images, and no more


def test_what_cannot_be_compared():
    teacher, student = related(20)
    broken = student.copy()
    broken[3, 1] = np.nan
    for arguments, keywords, message in (
        ((teacher, student[:19]), {}, "teacher embedded 20 images and the student 19"),
        ((teacher, broken), {}, "1 of 20 embeddings are not finite"),
        ((teacher[:1], student[:1]), {}, "there is 1 image, neighbors need 2"),
        ((teacher, student), {"ks": (20,)}, "k is 20, .* the number of other images, 19"),
        ((teacher, student), {"ks": ()}, "no k was given"),
        ((teacher, student), {"num_sampled": 0}, "number of sampled images is 0"),
        ((teacher, student), {"seed": -1}, "the seed is -1"),
    ):
        with pytest.raises(DistillError, match=message):
            neighbor_agreement(*arguments, **{"ks": (1,), **keywords})
