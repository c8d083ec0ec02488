import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from distill.data.loader import BadItem, Batch, Item, collate


def whole_batch(size, *, second=False, bad=("broken.jpg",)):
    rows = torch.arange(size)
    views = rows.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    distortion = rows.reshape(-1, 1, 1).expand(-1, 2, 4).float() if second else None
    second_view = views + 100 if second else None
    further = (views + 7, views + 8) if second else ()
    return Batch(views, second_view, rows + 20, rows + 40, 3, bad, distortion, further)


@pytest.mark.parametrize(
    ("size", "num_parts", "sizes"),
    [(7, 3, [2, 2, 3]), (6, 3, [2, 2, 2]), (2, 5, [1, 1]), (4, 1, [4]), (0, 2, [0])],
)
def test_split_cuts_the_rows_into_nearly_equal_parts(size, num_parts, sizes):
    batch = whole_batch(size, second=True)
    parts = batch.split(num_parts)
    assert sorted(len(part.index) for part in parts) == sizes
    for field in ("view", "second_view", "label", "index", "distortion"):
        rows = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(rows, getattr(batch, field))
    for number in range(2):
        rows = torch.cat([part.further_views[number] for part in parts])
        assert torch.equal(rows, batch.further_views[number])
    assert [part.bad for part in parts] == [("broken.jpg",)] + [()] * (len(parts) - 1)
    assert {part.epoch for part in parts} == {3}


def test_split_keeps_what_a_batch_is_without():
    for part in whole_batch(5).split(2):
        assert part.second_view is None
        assert part.distortion is None


def item(number, *, second=False, distortion=False):
    view = torch.full((3, 4, 4), number, dtype=torch.uint8)
    return Item(
        view,
        view[:, :2, :2] + 1 if second else None,
        number + 2,
        number + 3,
        5,
        torch.full((2, 6), number + 0.5) if distortion else None,
        (view + 5, view + 6) if second else (),
    )


def test_collate_keeps_rows_together_and_leaves_bad_ones_out():
    items = [item(7, second=True, distortion=True), BadItem("x.jpg", 5), BadItem(None, 5)]
    items.append(item(1, second=True, distortion=True))
    batch = collate(items, has_second_view=True, has_distortion=True, num_further_views=2)
    assert [view[:, 0, 0, 0].tolist() for view in batch.further_views] == [[12, 6], [13, 7]]
    assert batch.view[:, 0, 0, 0].tolist() == [7, 1]
    assert batch.second_view[:, 0, 0, 0].tolist() == [8, 2]
    assert batch.label.tolist() == [9, 3]
    assert batch.index.tolist() == [10, 4]
    assert batch.distortion[:, 1, 5].tolist() == [7.5, 1.5]
    assert (batch.distortion.shape, batch.distortion.dtype) == ((2, 2, 6), torch.float32)
    assert (batch.epoch, batch.bad) == (5, ("x.jpg",))


def test_collate_without_second_views_and_distortions():
    batch = collate([item(1), item(2)])
    assert batch.second_view is None
    assert batch.distortion is None


@pytest.mark.parametrize("full", [False, True])
def test_a_batch_goes_through_the_loaders_pinning(full, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self.clone())
    batch = collate(
        [item(1, second=full, distortion=full), BadItem("x.jpg", 5)],
        has_second_view=full,
        has_distortion=full,
        num_further_views=2 if full else 0,
    )
    pinned = pin_memory(batch)
    assert isinstance(pinned, Batch)
    assert list(pinned.bad) == ["x.jpg"]
    assert len(pinned.further_views) == (2 if full else 0)
    assert all(map(torch.equal, pinned.further_views, batch.further_views))
    for ours, theirs in zip(pinned, batch, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert torch.equal(ours, theirs)
            assert ours is not theirs
        elif theirs is None:
            assert ours is None
