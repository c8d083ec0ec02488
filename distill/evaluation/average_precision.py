"""Average precision of ranked images and of ranked boxes, as PASCAL VOC defines it.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, and the
challenge's development kit. Two rules for the area under a precision-recall curve:

- `voc07`: the mean of the largest precision at a recall of at least 0, 0.1, ..., 1 (11 points).
- `area` (since VOC2010): precision is made non-increasing in recall from the right, then the
  steps are summed exactly.

scikit-learn's `average_precision_score` sums the steps of the curve as it is, without making it
monotone, and takes equal scores as one step; it is therefore at most `area` where no scores are
equal, and the same where precision never rises with recall (at the hits). Here equal scores keep
the order they come in.

Difficult objects are neither hits nor misses and do not count as objects. A box is a hit if its
overlap with the object of the image that it overlaps most is at least 0.5 and no box with a larger
score hit that object; every further box on the same object is a false positive.

Shapes: M ranked items (images or boxes), N images, G objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import DistillError

Rule = Literal["voc07", "area"]
RULES: tuple[Rule, ...] = ("voc07", "area")
MIN_OVERLAP = 0.5
HIT, MISS, NEITHER = 1, 0, -1
PRESENT, DIFFICULT, ABSENT = 1, 0, -1


@dataclass(frozen=True)
class Boxes:
    """Boxes of one class in a set of images.

    Attributes:
        image: int64 (M,), the image that a box lies in.
        corners: float64 (M, 4), xmin, ymin, xmax, ymax in pixels; the last pixel belongs to the
            box, so that it is xmax - xmin + 1 wide.
    """

    image: np.ndarray
    corners: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def average_precision(verdicts: np.ndarray, num_objects: int, *, rule: Rule) -> float:
    """Return the area under a precision-recall curve, in [0, 1].

    Args:
        verdicts: (M,) of `HIT`, `MISS` or `NEITHER`, best first.
        num_objects: Number of objects, at least the number of hits.
        rule: `voc07` or `area`.

    Returns:
        NaN when there is no object.
    """
    if num_objects == 0:
        return float("nan")
    counted = verdicts[verdicts != NEITHER]
    hits = np.cumsum(counted == HIT)
    precision = hits / np.arange(1, len(counted) + 1)
    # From the right, so that each holds the largest precision at this recall or more.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "area":
        return float(precision[counted == HIT].sum() / num_objects)
    # recall >= j / 10, in integers: 0.1 has no exact binary value, and a recall may equal it.
    reached = [precision[10 * hits >= tenth * num_objects] for tenth in range(11)]
    return float(np.mean([at_least[0] if len(at_least) else 0.0 for at_least in reached]))


def classification_ap(scores: np.ndarray, labels: np.ndarray, *, rule: Rule) -> float:
    """Return the average precision of one class's scores.

    Args:
        scores: (N,), larger for images that more likely show the class.
        labels: (N,) of `PRESENT`, `ABSENT`, or `DIFFICULT`: only difficult objects, not counted.
        rule: `voc07` or `area`.

    Returns:
        NaN when no image shows the class.

    Raises:
        DistillError: Scores that are not finite.
    """
    _require_finite(scores)
    verdicts = np.select([labels == PRESENT, labels == ABSENT], [HIT, MISS], NEITHER)
    num_objects = int((labels == PRESENT).sum())
    return average_precision(verdicts[_ranking(scores)], num_objects, rule=rule)


def detection_ap(
    detected: Boxes, scores: np.ndarray, objects: Boxes, difficult: np.ndarray, *, rule: Rule
) -> float:
    """Return the average precision of one class's detections.

    Args:
        detected: M boxes, in any order.
        scores: (M,), larger for boxes that more likely hold an object.
        objects: G objects.
        difficult: bool (G,).
        rule: `voc07` or `area`.

    Returns:
        NaN when there is no object that is not difficult.

    Raises:
        DistillError: Scores that are not finite.
    """
    verdicts = detection_verdicts(detected, scores, objects, difficult)
    return average_precision(verdicts, int((~difficult).sum()), rule=rule)


def detection_verdicts(
    detected: Boxes, scores: np.ndarray, objects: Boxes, difficult: np.ndarray
) -> np.ndarray:
    """Compare detections with objects, best first; arguments as for `detection_ap`.

    Returns:
        (M,) of `HIT`, `MISS` (no object, or one that was hit before) or `NEITHER` (a difficult
        object), in the order of falling scores.
    """
    _require_finite(scores)
    places = {int(i): np.flatnonzero(objects.image == i) for i in np.unique(objects.image)}
    was_hit = np.zeros(len(objects), dtype=bool)
    verdicts = np.full(len(detected), MISS)
    for rank, row in enumerate(_ranking(scores)):
        candidates = places.get(int(detected.image[row]))
        if candidates is None:
            continue
        overlaps = overlap(detected.corners[row], objects.corners[candidates])
        best = candidates[np.argmax(overlaps)]
        if overlaps.max() < MIN_OVERLAP:
            continue
        if difficult[best]:
            verdicts[rank] = NEITHER
        elif not was_hit[best]:
            verdicts[rank] = HIT
            was_hit[best] = True
    return verdicts


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of a box with others, in whole pixels.

    Args:
        box: (4,) corners, see `Boxes`.
        others: (G, 4).

    Returns:
        (G,) float64 in [0, 1].
    """
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(high - low + 1, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2] + 1, axis=1)
    return intersection / (np.prod(box[2:] - box[:2] + 1) + areas - intersection)


def mean_average_precision(per_class: np.ndarray) -> float:
    """Return the mean over the classes that have objects.

    Args:
        per_class: (C,), NaN for classes without objects.

    Raises:
        DistillError: When no class has one.
    """
    counted = per_class[~np.isnan(per_class)]
    if len(counted) == 0:
        raise DistillError(
            "no class has an object in the test images that is not difficult, which an average "
            "precision needs; name another list of images with --test-split"
        )
    return float(counted.mean())


def _ranking(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


def _require_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise DistillError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite; the "
            "network's weights are damaged or its training diverged"
        )
