import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.embeddings.embed import Embeddings
from distill.errors import DistillError
from distill.evaluation.clusters import align
from distill.reports import sections
from distill.reports.gallery import Gallery, Thumbnails
from distill.reports.sections import (
    MAX_MAPPED,
    cluster_section,
    clustered,
    embedding_map,
    map_section,
    neighbor_section,
)

# Neighbors: embeddings on the circle, images whose pixels are their number.


def pictures(labels, name="set") -> Thumbnails:
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    known = None if min(labels) < 0 else labels
    return Thumbnails(ArrayImages(pixels, known, None if known is None else ["a", "b"], name=name))


def embedded(angles, labels, index=None) -> Embeddings:
    index = np.arange(len(angles)) if index is None else np.array(index)
    radians = np.deg2rad(np.asarray(angles, float))
    features = np.stack([np.cos(radians), np.sin(radians)], 1)
    return Embeddings(features, np.array(labels), index, ())


def gallery(train_angles, val_angles, train_labels, val_labels) -> Gallery:
    train, val = embedded(train_angles, train_labels), embedded(val_angles, val_labels)
    return Gallery(train, val, pictures(train_labels, "train"), pictures(val_labels, "val"))


def test_right_and_wrong_follow_the_classes_of_the_training_images():
    student = gallery([0, 10, 90, 100], [1, 93], [0, 1, 1, 0], [0, 1])
    section = neighbor_section(student, "no teacher here", seed=0)
    shown = {query.picture.name: query for query in section.random}
    assert [picture.is_right for picture in shown["a"].student] == [True, False, False, True]
    assert [picture.name for picture in shown["a"].student] == ["a", "b", "b", "a"]
    assert shown["a"].picture.is_right is None
    assert shown["a"].teacher is None
    assert section.no_teacher == "no teacher here"
    assert section.wrong == []
    assert "✓" in section.facts


def test_the_wrong_ones_are_those_whose_nearest_image_is_of_another_class():
    labels = np.arange(20) % 2  # of the queries; even ones are near 0, where class 0 lies
    near = [0 if label == 0 else 90 for label in labels]
    near[3], near[8] = 0, 90
    section = neighbor_section(gallery([0, 90], near, [0, 1], labels.tolist()), "none", seed=0)
    assert len(section.random) == 8
    assert sorted(query.picture.name for query in section.wrong) == ["a", "b"]
    assert all(not query.student[0].is_right for query in section.wrong)


def test_the_teacher_is_asked_about_the_same_image_though_it_lacks_others():
    student = gallery([0, 90], [5, 85, 5], [0, 1], [0, 1, 0])
    teacher = Gallery(
        student.indexed,
        embedded([85, 5], [1, 0], index=[1, 2]),
        student.indexed_pictures,
        student.query_pictures,
    )
    section = neighbor_section(student, teacher, seed=0)
    assert len(section.random) == 2  # image 0 is not known to the teacher
    assert section.no_teacher is None
    for query in section.random:
        assert [p.name for p in query.teacher] == [p.name for p in query.student]
        assert query.teacher[0].name == query.picture.name


def test_the_seed_decides_what_is_drawn():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 360, 30), rng.uniform(0, 360, 90)
    student = gallery(*angles, [0, 1] * 15, [0] * 45 + [1] * 45)

    def drawn(seed):
        return [q.picture.uri for q in neighbor_section(student, "none", seed).random]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_without_labels_nothing_is_right_or_wrong():
    same, shown = embedded([0, 10, 20], [-1] * 3), pictures([-1] * 3)
    student = Gallery(same, same, shown, shown)
    section = neighbor_section(student, "none", seed=0)
    assert section.wrong == []
    assert {p.is_right for query in section.random for p in query.student} == {None}
    assert "no labels" in section.facts
    assert {query.picture.name for query in section.random} == {"set[0]", "set[1]", "set[2]"}
    with pytest.raises(DistillError, match="the images of set"):
        cluster_section(student, seed=0)
    one = embedded([0], [0])
    with pytest.raises(DistillError, match="fewer than two"):
        neighbor_section(Gallery(one, one, pictures([0]), pictures([0])), "none", seed=0)


# Clusters: three classes of four; six of the bees are embedded among the cats.

NAMES = ["ant", "bee", "unused", "cat"]
LABELS = np.repeat([0, 1, 3], [30, 20, 10])
EMBEDDED_AS = np.repeat([0, 1, 3], [30, 14, 16])


def zoo(features, labels) -> Gallery:
    """Return a gallery of the odd images of a set."""
    index = np.arange(len(labels)) * 2 + 1
    of_set = np.full(index.max() + 1, NAMES.index("unused"))
    of_set[index] = labels
    pixels = np.zeros((len(of_set), 4, 4), np.uint8)
    shown = Thumbnails(ArrayImages(pixels, of_set, NAMES, name="zoo/train"))
    same = Embeddings(features, labels, index, ())
    return Gallery(same, same, shown, shown)


def near(groups) -> np.ndarray:
    return np.eye(8)[groups] + 0.05 * np.random.default_rng(0).standard_normal((len(groups), 8))


def test_clusters_are_matched_to_the_classes_that_occur():
    of_image, alignment = clustered(near(EMBEDDED_AS), LABELS, seed=0)
    by_class = {NAMES[alignment.mapping[k]]: k for k in range(3)}
    assert [alignment.sizes[by_class[name]] for name in ("ant", "bee", "cat")] == [30, 14, 16]
    assert alignment.matched_share[by_class["cat"]] == pytest.approx(10 / 16)
    assert np.bincount(of_image).tolist() == alignment.sizes.tolist()


def test_the_purest_and_the_least_pure_are_shown_and_the_table_follows_the_matching():
    section = cluster_section(zoo(near(EMBEDDED_AS), LABELS), seed=0)
    assert section.columns == ["ant", "bee", "cat"]
    expected = [[1, 0, 0], [0, 1, 0], [0, 6 / 16, 10 / 16]]
    assert section.shares == pytest.approx(np.array(expected))
    assert len(section.random) == 3
    assert section.best[0].purity == 1.0
    (worst,) = section.worst
    assert (worst.matched, worst.size, len(worst.pictures)) == ("cat", 16, 10)
    assert section.rows[2] == f"cluster {worst.number}"
    # Pictures are those of the set, not of the row.
    assert {p.name for p in worst.pictures} <= {"bee", "cat"}
    assert all(p.is_right == (p.name == "cat") for p in worst.pictures)
    assert section.facts.startswith(
        "60 images of zoo/train, embedded by the student, in 3 clusters"
    )


def test_an_empty_cluster_is_not_shown(monkeypatch):
    of_image, labels = np.array([0, 0, 2, 2]), np.array([0, 0, 1, 3])
    alignment = align(of_image, labels, of_image, labels, num_clusters=3)
    monkeypatch.setattr(sections, "clustered", lambda *_, **__: (of_image, alignment))
    section = cluster_section(zoo(np.eye(4), labels), seed=0)
    shown = [*section.random, *section.best, *section.worst]
    assert {cluster.number for cluster in shown} == {0, 2}
    assert sorted(section.rows) == ["cluster 0", "cluster 1", "cluster 2"]


# The map.


def test_groups_stay_together_whatever_the_length_of_their_embeddings():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), 20)
    features = 5 * np.eye(64)[labels] + 0.1 * rng.standard_normal((60, 64))
    features *= rng.uniform(0.1, 10, (60, 1))
    places = embedding_map(features, seed=3)
    assert (places.shape, places.dtype) == ((60, 2), np.float32)
    assert places.mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert (embedding_map(features, seed=3) == places).all()


@pytest.mark.parametrize("shape", [(8, 5), (60, 1), (9, 300)])
def test_few_images_and_any_width(shape):
    places = embedding_map(np.random.default_rng(0).standard_normal(shape))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()
    assert (embedding_map(np.ones(shape)) == 0).all()


def test_maps_that_are_refused():
    for number in (7, MAX_MAPPED + 1):
        with pytest.raises(DistillError, match=f"{number:,} were given"):
            embedding_map(np.ones((number, 2)))
    with pytest.raises(DistillError, match="not finite"):
        embedding_map(np.full((20, 4), np.nan))


def test_a_map_of_a_sample(monkeypatch):
    monkeypatch.setattr(sections, "MAX_MAPPED", 20)
    section = map_section(zoo(near(EMBEDDED_AS), LABELS), seed=0)
    assert (len(section.points), len(section.labels)) == (20, 20)
    assert "20 images of zoo/train" in section.facts
    assert section.classes == tuple(NAMES)
