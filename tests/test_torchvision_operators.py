"""The stand-ins for torchvision's compiled operators, against hand-worked values."""

import math
import sys

import pytest
import torch

from distill import torchvision_operators as operators
from distill.torchvision_operators import nms, provide_missing_operators, roi_align


def test_suppression_worked_by_hand():
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 5],  # half of the first
            [0, 0, 10, 6],  # 0.6 of the first, 5/6 of the second
            [20, 20, 30, 30],
            [21, 20, 31, 30],  # 90 of 110 of the fourth
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1, 0.7])
    # The second keeps the third out (5/6), and the first in (1/2 is not more than 1/2).
    assert nms(boxes, scores, 0.5).tolist() == [1, 4, 0]
    assert nms(boxes, scores, 0.49).tolist() == [1, 4]
    assert nms(boxes, scores, 0.9).tolist() == [1, 2, 4, 0, 3]


def test_equal_scores_boxes_without_area_and_no_boxes():
    same = torch.tensor([[0.0, 0, 4, 4]] * 3)
    assert nms(same, torch.zeros(3), 0.5).tolist() == [0]
    points = torch.tensor([[1.0, 1, 1, 1]] * 2)
    assert nms(points, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]
    none = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (none.tolist(), none.dtype) == ([], torch.int64)


def bilinear(plane, y, x):
    """One sample of a map (H, W), as the definition words it; zero beyond a pixel outside."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
            if down * across > 0:
                value += down * across * float(plane[row, column])
    return value


def by_definition(maps, rois, scale, num_rows, num_columns, ratio, aligned):
    found = torch.zeros(len(rois), maps.shape[1], num_rows, num_columns, dtype=torch.float64)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        high, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        down, across = high / num_rows, wide / num_columns
        num_y = ratio if ratio > 0 else math.ceil(down)
        num_x = ratio if ratio > 0 else math.ceil(across)
        for channel in range(maps.shape[1]):
            for p in range(num_rows):
                for q in range(num_columns):
                    samples = [
                        bilinear(
                            maps[int(image), channel],
                            y1 + (p + (i + 0.5) / num_y) * down,
                            x1 + (q + (j + 0.5) / num_x) * across,
                        )
                        for i in range(num_y)
                        for j in range(num_x)
                    ]
                    found[k, channel, p, q] = sum(samples) / max(len(samples), 1)
    return found


def test_regions_worked_by_hand():
    # The map is 10 y + x: a sample of it is 10 y + x at any place on it.
    plane = (10.0 * torch.arange(6)[:, None] + torch.arange(8)).view(1, 1, 6, 8)
    roi = torch.tensor([[0.0, 2, 2, 6, 4]])
    # One bin of 4 x 2, whose middle is (3, 4): not aligned 34, aligned half a pixel less each way.
    assert roi_align(plane, roi, 1.0, 1, 1, 2, False).item() == pytest.approx(34)
    assert roi_align(plane, roi, 1.0, 1, 1, 2, True).item() == pytest.approx(34 - 5.5)
    # 1 x 2 bins of 2 x 2: their middles are (3, 3) and (3, 5).
    found = roi_align(plane, roi, 1.0, 1, 2, -1, False)
    torch.testing.assert_close(found, torch.tensor([[[[33.0, 35.0]]]]))
    # At half the scale: (1, 1)-(3, 2), middle (1.5, 2).
    assert roi_align(plane, roi, 0.5, 1, 1, 1, False).item() == pytest.approx(17)
    # Less than a pixel: not aligned it is one pixel from its corner on.
    small = torch.tensor([[0.0, 2, 2, 2.5, 2.5]])
    assert roi_align(plane, small, 1.0, 1, 1, 1, False).item() == pytest.approx(27.5)
    assert roi_align(plane, small, 1.0, 1, 1, 1, True).item() == pytest.approx(11 * 1.75)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 2])
def test_any_region_by_the_definition(aligned, ratio):
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 7, 5)
    inside = torch.tensor([[0, 2.0, 3, 9, 13], [1, 0, 0, 10, 14], [1, 4.2, 1.1, 5.3, 8.7]])
    across_the_border = torch.tensor([[0, -6.0, -8, 30, 40], [1, 8, 12, 12.5, 17], [0, 3, 3, 3, 3]])
    far_outside = torch.tensor([[0, 40.0, 40, 60, 60]])
    rois = torch.cat([inside, across_the_border, far_outside])
    found = roi_align(maps, rois, 0.5, 3, 2, ratio, aligned)
    expected = by_definition(maps, rois, 0.5, 3, 2, ratio, aligned)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert found[-1].abs().max() == 0
    assert found[0].abs().min() > 0


def test_the_gradient_is_that_of_the_definition():
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.0, 0.5, 3, 4], [1, 1, 1, 2.5, 3.5], [1, -3, -3, 9, 9]]).double()
    for ratio in (-1, 2):
        assert torch.autograd.gradcheck(
            lambda m, ratio=ratio: roi_align(m, rois, 1.0, 2, 2, ratio, True), maps
        )


def test_no_regions_and_narrow_types():
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    for ratio in (-1, 2):
        found = roi_align(maps, torch.zeros(0, 5), 1.0, 7, 7, ratio, False)
        assert found.shape == (0, 3, 7, 7)
    found.sum().backward()
    roi = torch.tensor([[0, 0.0, 0, 3, 3]])
    narrow = roi_align(maps.bfloat16(), roi.bfloat16(), 1.0, 2, 2, 2, False)
    assert narrow.dtype == torch.bfloat16
    wide = roi_align(maps, roi, 1.0, 2, 2, 2, False)
    torch.testing.assert_close(narrow.float(), wide, atol=0.02, rtol=0.02)


def test_torchvision_computes_with_them_or_with_its_own(monkeypatch):
    provide_missing_operators()
    from torchvision import ops

    # What it would compile at run time otherwise.
    monkeypatch.setattr(sys.modules["torchvision.ops.roi_align"], "_roi_align", None)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 6, 6]])
    scores = torch.tensor([0.1, 0.2, 0.3])
    assert ops.nms(boxes, scores, 0.5).tolist() == [2, 1]
    assert ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5).tolist() == [2, 1, 0]
    maps = torch.randn(2, 3, 8, 8, requires_grad=True)
    found = ops.roi_align(maps, [boxes[:2], boxes[2:]], 3, sampling_ratio=2, aligned=True)
    rois = torch.cat([torch.tensor([[0.0], [0], [1]]), boxes], dim=1)
    torch.testing.assert_close(found, roi_align(maps, rois, 1.0, 3, 3, 2, True))
    found.sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_nothing_is_done_where_the_compiled_ones_load(monkeypatch):
    monkeypatch.setattr(operators, "declare_missing_operators", lambda: None)
    assert provide_missing_operators.__wrapped__() is False
