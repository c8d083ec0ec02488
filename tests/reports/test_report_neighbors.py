import numpy as np
import pytest

from distill.data.images import ArrayImages
from distill.embeddings.embed import Embeddings
from distill.errors import DistillError
from distill.reports.gallery import Gallery, Thumbnails, without_own
from distill.reports.sections import neighbor_section


def images(labels, name="set") -> Thumbnails:
    """Return images whose pixels are their number."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    known = None if labels is None or min(labels) < 0 else labels
    return Thumbnails(ArrayImages(pixels, known, None if known is None else ["a", "b"], name=name))


def embedded(angles, index=None, labels=None) -> Embeddings:
    """Return embeddings on the circle, at angles in degrees."""
    index = np.arange(len(angles)) if index is None else np.array(index)
    labels = np.full(len(angles), -1) if labels is None else np.array(labels)
    radians = np.deg2rad(np.asarray(angles, float))
    return Embeddings(np.stack([np.cos(radians), np.sin(radians)], 1), labels, index, ())


def labeled(train_angles, val_angles, train_labels, val_labels) -> Gallery:
    return Gallery(
        embedded(train_angles, labels=train_labels),
        embedded(val_angles, labels=val_labels),
        images(train_labels, "train"),
        images(val_labels, "val"),
    )


def test_neighbors_are_numbers_of_the_set_nearest_first():
    eyes = Gallery(embedded([0, 90, 180, 270], [2, 5, 7, 9]), embedded([100, 5]), None, None)
    assert eyes.neighbors(2).tolist() == [[5, 7], [2, 5]]


def test_an_image_is_no_neighbor_of_itself():
    same = embedded([0, 10, 25, 180], [3, 4, 6, 8])
    assert Gallery(same, same, None, None).neighbors(2).tolist() == [[4, 6], [3, 6], [4, 3], [6, 4]]


def test_fewer_images_than_neighbors():
    same = embedded([0, 10, 180])
    assert Gallery(same, same, None, None).neighbors(5).shape == (3, 2)
    assert Gallery(same, embedded([0]), None, None).neighbors(5).shape == (1, 3)


def test_own_numbers_are_dropped_wherever_they_stand():
    numbers = np.array([[1, 2, 3], [2, 1, 3], [4, 5, 6]])
    assert without_own(numbers, np.array([1, 1, 1])).tolist() == [[2, 3], [2, 3], [4, 5]]


def test_right_and_wrong_follow_the_classes_of_the_training_images():
    student = labeled([0, 10, 90, 100], [1, 93], [0, 1, 1, 0], [0, 1])
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
    angles = [0, 90]
    labels = np.arange(20) % 2  # of the queries; even ones are near 0, where class 0 lies
    near = [0 if label == 0 else 90 for label in labels]
    near[3], near[8] = 0, 90
    student = labeled(angles, near, [0, 1], labels.tolist())
    section = neighbor_section(student, "none", seed=0)
    assert len(section.random) == 8
    assert sorted(query.picture.name for query in section.wrong) == ["a", "b"]
    assert all(not query.student[0].is_right for query in section.wrong)


def test_the_teacher_is_asked_about_the_same_image_though_it_lacks_others():
    student = labeled([0, 90], [5, 85, 5], [0, 1], [0, 1, 0])
    teacher = Gallery(
        student.indexed,
        embedded([85, 5], index=[1, 2], labels=[1, 0]),
        student.indexed_pictures,
        student.query_pictures,
    )
    section = neighbor_section(student, teacher, seed=0)
    assert len(section.random) == 2  # image 0 is not known to the teacher
    assert section.wrong == []
    assert section.no_teacher is None
    for query in section.random:
        assert [p.name for p in query.teacher] == [p.name for p in query.student]
        assert query.teacher[0].name == query.picture.name


def test_a_draw_is_repeated_by_its_seed_and_differs_by_another():
    rng = np.random.default_rng(0)
    student = labeled(
        rng.uniform(0, 360, 30), rng.uniform(0, 360, 90), [0, 1] * 15, [0] * 45 + [1] * 45
    )

    def drawn(seed):
        return [q.picture.uri for q in neighbor_section(student, "none", seed).random]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_without_labels_nothing_is_right_or_wrong():
    same = embedded([0, 10, 20])
    pictures = images([-1] * 3)
    section = neighbor_section(Gallery(same, same, pictures, pictures), "none", seed=0)
    assert section.wrong == []
    assert {p.is_right for query in section.random for p in query.student} == {None}
    assert "no labels" in section.facts
    assert {query.picture.name for query in section.random} == {"set[0]", "set[1]", "set[2]"}


def test_one_image_has_no_neighbor():
    one = embedded([0])
    with pytest.raises(DistillError, match="fewer than two"):
        neighbor_section(Gallery(one, one, images([0]), images([0])), "none", seed=0)
