import numpy as np
import pytest

from distill.errors import DistillError
from distill.reports.sections import MAX_MAPPED, embedding_map


def groups(number: int = 20, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of three groups that are far from each other, and whose they are."""
    rng = np.random.default_rng(0)
    centers = 5 * np.eye(width)[:3]
    labels = np.repeat(np.arange(3), number)
    return centers[labels] + 0.1 * rng.standard_normal((len(labels), width)), labels


def test_groups_stay_together_whatever_the_length_of_their_embeddings():
    features, labels = groups()
    lengths = np.random.default_rng(1).uniform(0.1, 10, (len(features), 1))
    places = embedding_map(features * lengths)
    assert places.shape == (60, 2)
    assert places.dtype == np.float32
    assert places.mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()


def test_the_same_seed_gives_the_same_map():
    features, _ = groups(10)
    first = embedding_map(features, seed=3)
    assert (embedding_map(features, seed=3) == first).all()


@pytest.mark.parametrize("shape", [(8, 5), (60, 1), (9, 300)])
def test_few_images_and_any_width(shape):
    places = embedding_map(np.random.default_rng(0).standard_normal(shape))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


def test_equal_embeddings_lie_on_one_place():
    assert (embedding_map(np.ones((20, 4))) == 0).all()


@pytest.mark.parametrize("number", [7, MAX_MAPPED + 1])
def test_too_few_and_too_many_are_refused(number):
    with pytest.raises(DistillError, match=f"{number:,} were given"):
        embedding_map(np.ones((number, 2)))


def test_embeddings_that_are_not_finite_are_refused():
    features, _ = groups()
    features[4, 2] = np.nan
    with pytest.raises(DistillError, match="not finite"):
        embedding_map(features)
