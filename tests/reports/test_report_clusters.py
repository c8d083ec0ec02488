import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.embeddings.embed import Embeddings
from distill.errors import DistillError
from distill.evaluation.clusters import align
from distill.reports import sections as report_clusters
from distill.reports.gallery import Gallery, Thumbnails
from distill.reports.sections import cluster_section, clustered

NAMES = ["ant", "bee", "unused", "cat"]


def groups(labels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return embeddings that say `seen` of every image, with a little noise."""
    noise = 0.05 * np.random.default_rng(0).standard_normal((len(labels), 8))
    return np.eye(8)[seen] + noise


def eyes(features, labels, index=None) -> Gallery:
    index = np.arange(len(labels)) if index is None else index
    pixels = np.zeros((index.max() + 1, 4, 4), np.uint8)
    of_set = np.full(len(pixels), NAMES.index("unused"))
    of_set[index] = labels
    pictures = Thumbnails(ArrayImages(pixels, of_set, NAMES, name="digits/train"))
    found = Embeddings(features, labels, index, ())
    return Gallery(found, found, pictures, pictures)


LABELS = np.repeat([0, 1, 3], [30, 20, 10])
SEEN = np.concatenate([np.zeros(30), np.ones(14), np.full(6, 3), np.full(10, 3)]).astype(int)


def test_clusters_are_matched_to_the_classes_that_occur():
    of_image, found = clustered(groups(LABELS, SEEN), LABELS, seed=0)
    by_class = {NAMES[found.mapping[k]]: k for k in range(3)}
    assert [found.sizes[by_class[name]] for name in ("ant", "bee", "cat")] == [30, 14, 16]
    assert found.matched_share[by_class["cat"]] == pytest.approx(10 / 16)
    assert np.bincount(of_image).tolist() == found.sizes.tolist()


def test_an_empty_cluster_is_not_shown(monkeypatch):
    of_image, labels = np.array([0, 0, 2, 2]), np.array([0, 0, 1, 3])
    found = align(of_image, labels, of_image, labels, num_clusters=3)
    monkeypatch.setattr(report_clusters, "clustered", lambda *_, **__: (of_image, found))
    section = cluster_section(eyes(np.eye(4), labels), seed=0)
    shown = [*section.random, *section.best, *section.worst]
    assert {cluster.number for cluster in shown} == {0, 2}
    assert section.worst[0].number == 2
    assert sorted(section.rows) == ["cluster 0", "cluster 1", "cluster 2"]


def test_the_page_shows_best_and_worst_and_orders_the_table_by_the_matching():
    section = cluster_section(eyes(groups(LABELS, SEEN), LABELS), seed=0)
    assert section.columns == ["ant", "bee", "cat"]
    expected = [[1, 0, 0], [0, 1, 0], [0, 6 / 16, 10 / 16]]
    assert section.shares == pytest.approx(np.array(expected))
    assert len(section.random) == 3
    assert [cluster.matched for cluster in section.worst] == ["cat"]
    assert section.best[0].purity == 1.0
    (worst,) = section.worst
    assert worst.size == 16
    assert section.rows[2] == f"cluster {worst.number}"
    assert len(worst.pictures) == 10
    assert {p.name for p in worst.pictures} <= {"bee", "cat"}
    assert all(p.is_right == (p.name == "cat") for p in worst.pictures)
    assert "60 images of digits/train" in section.facts
    assert "3 clusters" in section.facts


def test_pictures_are_those_of_the_set_not_of_the_row():
    index = np.arange(60) * 2 + 1
    section = cluster_section(eyes(groups(LABELS, SEEN), LABELS, index), seed=0)
    ant = next(cluster for cluster in section.random if cluster.matched == "ant")
    assert {picture.name for picture in ant.pictures} == {"ant"}
    assert all(picture.is_right for picture in ant.pictures)


def test_the_seed_decides_what_is_shown():
    labels = np.repeat(np.arange(2) * 3, 40)
    student = eyes(groups(labels, labels), labels)
    rng = np.random.default_rng(1)
    student.indexed_pictures.images.pixels[:] = rng.integers(0, 255, (80, 4, 4))

    def shown(seed):
        found = cluster_section(student, seed).random
        return {cluster.matched: [p.uri for p in cluster.pictures] for cluster in found}

    assert shown(1) == shown(1)
    assert shown(1) != shown(2)


@pytest.mark.parametrize("labels", [np.full(10, -1), np.zeros(10, np.int64)])
def test_labels_that_mean_nothing_are_refused(labels):
    pictures = Thumbnails(ArrayImages(np.zeros((10, 4, 4), np.uint8), name="photos"))
    found = Embeddings(np.eye(10), labels, np.arange(10), ())
    with pytest.raises(DistillError, match="the images of photos"):
        cluster_section(Gallery(found, found, pictures, pictures), seed=0)
