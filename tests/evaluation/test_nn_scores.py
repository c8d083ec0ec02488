import numpy as np

from distill.evaluation.nn import ClassScore, NearestNeighborScores

LABELS = np.array([2, 2, 2, 2, 5, 5, 9])
SCORES = NearestNeighborScores(
    LABELS, {1: np.array([2, 5, 5, 7, 5, 5, 2]), 4: np.array([2, 2, 2, 2, 5, 9, 9])}
)


def test_accuracies_by_k():
    assert SCORES.accuracies() == {1: 3 / 7, 4: 6 / 7}


def test_confusion_counts_true_classes_in_rows():
    assert SCORES.classes(1).tolist() == [2, 5, 7, 9]
    assert SCORES.confusion(1).tolist() == [[1, 2, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert SCORES.classes(4).tolist() == [2, 5, 9]
    assert SCORES.confusion(4).tolist() == [[4, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert SCORES.confusion(4).dtype == np.int64


def test_the_table_of_classes():
    assert SCORES.by_class(1) == [
        ClassScore(2, 4, 0.25, confused_with=5, confused_share=0.5),
        ClassScore(5, 2, 1.0, confused_with=None, confused_share=0.0),
        ClassScore(9, 1, 0.0, confused_with=2, confused_share=1.0),
    ]
    rows = SCORES.by_class(4)
    assert sum(row.accuracy * row.num_images for row in rows) == 6
