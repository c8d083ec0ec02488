"""Query images with their nearest training images, in the student's eyes and in the teacher's.

Shapes: N training images, M queries, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.errors import DistillError
from distill.evaluation.embed import Embeddings
from distill.evaluation.nearest_neighbour import nearest_neighbours
from distill.jobs.report_thumbnails import Thumbnails
from distill.report.content import NeighbourSection, Picture, Query

NUM_NEIGHBOURS = 5
NUM_RANDOM, NUM_WRONG = 8, 4


@dataclass(frozen=True)
class Eyes:
    """How one network sees the images.

    Attributes:
        indexed: Training images that are looked up.
        queries: Images that are looked up among them; `indexed` itself where there are no others.
        indexed_pictures: Of the set of `indexed`.
        query_pictures: Of the set of `queries`.
    """

    indexed: Embeddings
    queries: Embeddings
    indexed_pictures: Thumbnails
    query_pictures: Thumbnails

    def neighbours(self, k: int) -> np.ndarray:
        """Return the numbers in their set of the k nearest images of every query, (M, k).

        An image is no neighbour of itself. With fewer images than k all of them are returned.

        Raises:
            DistillError: Embeddings that are not finite.
        """
        index, same = self.indexed.index, self.queries is self.indexed
        k = min(k, len(index) - same)
        rows, _ = nearest_neighbours(self.indexed.features, self.queries.features, k=k + same)
        numbers = index[rows]
        return without_own(numbers, self.queries.index) if same else numbers


def without_own(numbers: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Drop each row's own number, or its last number where it does not occur.

    Args:
        numbers: (M, k + 1).
        own: (M,).

    Returns:
        (M, k), in the order of before.
    """
    is_own = numbers == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    return numbers[~is_own].reshape(len(numbers), -1)


def neighbour_section(student: Eyes, teacher: Eyes | str, seed: int) -> NeighbourSection:
    """Return queries with their neighbours.

    Args:
        student: How the student sees the images.
        teacher: How the teacher does, or why that is not known.
        seed: Of the draw.

    Raises:
        DistillError: Fewer than two images to look up.
    """
    if len(student.indexed.index) < 2 or len(student.queries.index) == 0:
        raise DistillError("there are fewer than two images to look up")
    in_student = student.neighbours(NUM_NEIGHBOURS)
    in_teacher = None if isinstance(teacher, str) else teacher.neighbours(NUM_NEIGHBOURS)
    rows = _rows_in_both(student, teacher)
    wrong = np.intersect1d(rows, np.flatnonzero(_is_wrong(student, in_student)))
    rng = np.random.default_rng(seed)

    def drawn(candidates: np.ndarray, number: int) -> list[Query]:
        chosen = rng.choice(candidates, min(number, len(candidates)), replace=False)
        return [_query(student, teacher, in_student, in_teacher, int(row)) for row in chosen]

    return NeighbourSection(
        facts=_facts(student),
        random=drawn(rows, NUM_RANDOM),
        wrong=drawn(wrong, NUM_WRONG),
        no_teacher=teacher if isinstance(teacher, str) else None,
    )


def _facts(student: Eyes) -> str:
    images = student.indexed_pictures.images
    queries = student.query_pictures.images.name
    text = (
        f"Images of {queries} with their nearest of {len(student.indexed.index):,} images of "
        f"{images.name}, by cosine similarity, nearest first."
    )
    if images.labels is None:
        return f"{text} The images have no labels: what is right is for you to see."
    return f"{text} ✓ and a whole frame: of the query's class; ✗ and a dashed frame: of another."


def _rows_in_both(student: Eyes, teacher: Eyes | str) -> np.ndarray:
    """Return the rows of the student's queries that the teacher has, too."""
    if isinstance(teacher, str):
        return np.arange(len(student.queries.index))
    return np.flatnonzero(np.isin(student.queries.index, teacher.queries.index))


def _is_wrong(student: Eyes, in_student: np.ndarray) -> np.ndarray:
    """Say of every query whether its nearest image is of another class; False without labels."""
    labels = student.indexed_pictures.images.labels
    if labels is None:
        return np.zeros(len(in_student), bool)
    return labels[in_student[:, 0]] != student.queries.labels


def _query(
    student: Eyes,
    teacher: Eyes | str,
    in_student: np.ndarray,
    in_teacher: np.ndarray | None,
    row: int,
) -> Query:
    number, label = int(student.queries.index[row]), int(student.queries.labels[row])
    of_teacher = None
    if in_teacher is not None and not isinstance(teacher, str):
        teacher_row = int(np.searchsorted(teacher.queries.index, number))
        of_teacher = _shown(student.indexed_pictures, in_teacher[teacher_row], label)
    return Query(
        student.query_pictures.picture(number),
        of_teacher,
        _shown(student.indexed_pictures, in_student[row], label),
    )


def _shown(pictures: Thumbnails, numbers: Sequence[int], label: int) -> list[Picture]:
    labels = pictures.images.labels
    return [
        pictures.picture(
            int(number), is_right=None if labels is None else bool(labels[number] == label)
        )
        for number in numbers
    ]
