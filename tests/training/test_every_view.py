import torch
from torch import nn

from distill.training.distillation import MultiCropWrapper


class Sized(nn.Module):
    """Says the sum of an image, and remembers the shapes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return images.sum((1, 2, 3))[:, None]


def test_views_of_one_size_share_a_pass_and_the_first_size_comes_last():
    network = Sized()
    views = [torch.randn(3, 3, side, side) for side in (8, 4, 8, 4, 2)]
    found = MultiCropWrapper(network)(views)
    assert network.seen == [(3, 3, 2, 2), (6, 3, 4, 4), (6, 3, 8, 8)]
    for view, embedding in zip(views, found, strict=True):
        torch.testing.assert_close(embedding, view.sum((1, 2, 3))[:, None])


def test_one_view_is_one_pass():
    network = Sized()
    (found,) = MultiCropWrapper(network)([torch.ones(2, 3, 1, 1)])
    assert found.tolist() == [[3], [3]]
    assert network.seen == [(2, 3, 1, 1)]


def test_without_rows_every_size_has_its_pass():
    network = Sized()
    found = MultiCropWrapper(network)([torch.empty(0, 3, side, side) for side in (8, 8, 4)])
    assert [part.shape for part in found] == [(0, 1)] * 3
    assert len(network.seen) == 2
