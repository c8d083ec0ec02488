"""Average precision against cases worked by hand, and against scikit-learn where both agree."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from distill.errors import DistillError
from distill.evaluation.average_precision import (
    HIT,
    MISS,
    NEITHER,
    Boxes,
    average_precision,
    classification_ap,
    detection_ap,
    detection_verdicts,
    mean_average_precision,
    overlap,
)


def boxes(*rows):
    """One (image, xmin, ymin, xmax, ymax) a row."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Boxes(table[:, 0].astype(np.int64), table[:, 1:])


def by_definition(verdicts, num_objects):
    """Both rules in exact fractions, from the words of the challenge."""
    hits, seen, curve = 0, 0, []
    for verdict in verdicts:
        if verdict != NEITHER:
            seen += 1
            hits += verdict == HIT
            curve.append((Fraction(hits, num_objects), Fraction(hits, seen)))

    def best(recall):
        return max((p for r, p in curve if r >= recall), default=Fraction(0))

    eleven = sum(best(Fraction(j, 10)) for j in range(11)) / 11
    area = sum(best(Fraction(k, num_objects)) for k in range(1, num_objects + 1)) / num_objects
    return {"voc07": float(eleven), "area": float(area)}


def test_a_ranking_worked_by_hand():
    # hit, miss, (difficult), hit, miss, hit of 4 objects. Counted ranks 1..5:
    # recall 1/4 1/4 2/4 2/4 3/4, precision 1 1/2 2/3 1/2 3/5; the fourth is never found.
    # 11 points: 1 at 0, .1, .2; 2/3 at .3, .4, .5; 3/5 at .6, .7; 0 at .8, .9, 1.
    # Area: 1/4 of each of 1, 2/3, 3/5 and 0.
    verdicts = np.array([HIT, MISS, NEITHER, HIT, MISS, HIT])
    assert average_precision(verdicts, 4, rule="voc07") == pytest.approx((3 + 2 + 6 / 5) / 11)
    assert average_precision(verdicts, 4, rule="area") == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)


def test_the_largest_precision_at_this_recall_or_more_counts():
    # miss, hit, hit: precision at the hits 1/2 and 2/3, so that both count as 2/3.
    for rule in ("voc07", "area"):
        found = average_precision(np.array([MISS, HIT, HIT]), 2, rule=rule)
        assert found == pytest.approx(2 / 3)


@pytest.mark.parametrize("num_objects", [10, 20, 30, 70])
def test_a_recall_of_exactly_three_tenths_counts_as_three_tenths(num_objects):
    verdicts = np.array([HIT] * (3 * num_objects // 10))
    assert average_precision(verdicts, num_objects, rule="voc07") == pytest.approx(4 / 11)


@given(st.lists(st.sampled_from([HIT, MISS, NEITHER]), max_size=30), st.integers(0, 5))
def test_any_ranking_by_the_definition(ranked, num_missed):
    verdicts = np.array(ranked, dtype=np.int64)
    num_objects = int((verdicts == HIT).sum()) + num_missed
    for rule in ("voc07", "area"):
        found = average_precision(verdicts, num_objects, rule=rule)
        if num_objects == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(by_definition(ranked, num_objects)[rule])


def test_images_that_are_only_difficult_are_ignored():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    labels = np.array([1, 0, -1, 1, 0])
    # Without the difficult ones: hit, miss, hit; precision 1, 1/2, 2/3.
    assert classification_ap(scores, labels, rule="area") == pytest.approx((1 + 2 / 3) / 2)
    assert classification_ap(scores, labels, rule="voc07") == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert math.isnan(classification_ap(scores, np.array([0, 0, -1, -1, -1]), rule="area"))


def test_equal_scores_keep_their_order():
    scores = np.zeros(40)
    labels = np.array([1, *[-1] * 39])
    assert classification_ap(scores, labels, rule="area") == 1.0
    assert classification_ap(scores, labels[::-1], rule="area") == pytest.approx(1 / 40)
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, 400) / 2, rng.choice([1, -1], 400)
    ranked = [labels[i] for i in sorted(range(400), key=lambda i: -scores[i])]
    expected = by_definition([HIT if label == 1 else MISS for label in ranked], ranked.count(1))
    assert classification_ap(scores, labels, rule="area") == pytest.approx(expected["area"])


def test_scikit_learn_where_precision_only_falls():
    # At the hits: 1, 1, 3/4, 4/7: nothing to make monotone, and the sums are the same.
    labels = np.array([1, 1, -1, 1, -1, -1, 1, -1])
    scores = -np.arange(8.0)
    expected = average_precision_score(labels == 1, scores)
    assert classification_ap(scores, labels, rule="area") == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_scikit_learn_never_gives_more(present):
    labels = np.where(present, 1, -1)
    scores = -np.arange(float(len(labels)))
    found = classification_ap(scores, labels, rule="area")
    assert average_precision_score(present, scores) <= found + 1e-12


def test_pixels_belong_to_both_ends_of_a_box():
    # 10 x 10 pixels each, 5 x 10 in common: 50 of 150.
    box = np.array([1.0, 1, 10, 10])
    others = np.array([[6.0, 1, 15, 10], [1, 1, 10, 10], [11, 1, 20, 10], [10, 10, 19, 19]])
    np.testing.assert_allclose(overlap(box, others), [1 / 3, 1, 0, 1 / 199])
    # Far apart in both directions: the product of two negative sides is not an overlap.
    assert overlap(box, np.array([[50.0, 50, 60, 60]])) == 0


def test_detections_worked_by_hand():
    # Image 0: A = (1,1)-(10,10) and D = (21,1)-(30,10), which is difficult. Image 1: B.
    objects = boxes((0, 1, 1, 10, 10), (0, 21, 1, 30, 10), (1, 1, 1, 10, 20))
    difficult = np.array([False, True, False])
    detected = boxes(
        (0, 1, 1, 10, 9),  # .95: 90 of 100 of A                        hit
        (0, 21, 1, 30, 10),  # .90: all of D                            neither
        (0, 1, 1, 10, 10),  # .80: all of A, which was hit              miss
        (1, 1, 1, 10, 10),  # .70: 100 of 200 of B, exactly one half    hit
        (0, 21, 1, 30, 9),  # .60: 90 of 100 of D, difficult as often   neither
        (2, 1, 1, 10, 10),  # .50: an image without objects             miss
        (1, 41, 1, 50, 10),  # .40: where nothing is                    miss
    )
    scores = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    order = [3, 6, 0, 2, 5, 1, 4]  # it comes in any order
    shuffled = Boxes(detected.image[order], detected.corners[order])
    verdicts = detection_verdicts(shuffled, scores[order], objects, difficult)
    assert list(verdicts) == [HIT, NEITHER, MISS, HIT, NEITHER, MISS, MISS]
    # Two objects count. Precision at the hits: 1 and 2/3.
    found = {
        rule: detection_ap(shuffled, scores[order], objects, difficult, rule=rule)
        for rule in ("voc07", "area")
    }
    assert found["voc07"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert found["area"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_box_belongs_to_the_object_it_overlaps_most_even_if_that_was_hit():
    objects = boxes((0, 1, 1, 10, 10), (0, 1, 3, 10, 12))
    detected = boxes((0, 1, 1, 10, 10), (0, 1, 1, 10, 10))
    verdicts = detection_verdicts(detected, np.array([0.9, 0.8]), objects, np.zeros(2, bool))
    assert list(verdicts) == [HIT, MISS]  # though the second object is covered by 80 of 120


def test_just_below_one_half_is_a_miss():
    objects = boxes((0, 1, 1, 10, 20))
    detected = boxes((0, 1, 1, 10, 9))  # 90 of 200
    assert list(detection_verdicts(detected, np.array([0.9]), objects, np.zeros(1, bool))) == [MISS]


def test_equal_boxes_of_equal_scores_are_one_hit_and_misses():
    objects = boxes((0, 1, 1, 10, 10))
    detected = boxes(*[(0, 1, 1, 10, 10)] * 3, (0, 30, 30, 40, 40))
    verdicts = detection_verdicts(detected, np.full(4, 0.5), objects, np.zeros(1, bool))
    assert list(verdicts) == [HIT, MISS, MISS, MISS]
    order = [3, 0, 1, 2]
    first_wrong = Boxes(detected.image[order], detected.corners[order])
    verdicts = detection_verdicts(first_wrong, np.full(4, 0.5), objects, np.zeros(1, bool))
    assert list(verdicts) == [MISS, HIT, MISS, MISS]


def test_nothing_found_and_nothing_to_find():
    one, none = boxes((0, 1, 1, 10, 10)), boxes()
    not_difficult, no_scores = np.zeros(1, bool), np.zeros(0)
    for rule in ("voc07", "area"):
        assert detection_ap(none, no_scores, one, not_difficult, rule=rule) == 0
        assert math.isnan(detection_ap(one, np.ones(1), none, np.zeros(0, bool), rule=rule))
        assert math.isnan(detection_ap(one, np.ones(1), one, ~not_difficult, rule=rule))


def test_the_mean_is_over_classes_that_have_objects():
    assert mean_average_precision(np.array([0.5, np.nan, 1.0])) == 0.75
    with pytest.raises(DistillError, match="no class has an object"):
        mean_average_precision(np.array([np.nan, np.nan]))


def test_scores_that_are_not_finite():
    with pytest.raises(DistillError, match="1 of 2 scores are not finite"):
        classification_ap(np.array([0.0, np.nan]), np.array([1, -1]), rule="area")
    one = boxes((0, 1, 1, 10, 10))
    with pytest.raises(DistillError, match="1 of 1 scores are not finite"):
        detection_ap(one, np.array([np.inf]), one, np.zeros(1, bool), rule="area")
