"""Batches: the order of a run, views by (seed, epoch, image) alone, bad images left out by name."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from distill.data.images import ArrayImages, FolderImages
from distill.data.loader import (
    NO_IMAGE,
    BadItem,
    Batch,
    EpochSampler,
    Item,
    TrainingViews,
    collate,
    evaluation_loader,
    num_batches,
    training_loader,
)
from distill.data.views import evaluation_view, training_view
from distill.errors import DistillError

INDICES = np.array([3, 5, 8, 13, 21, 34, 55])
NUM_IMAGES = 23


def order(**changed):
    settings = {"batch_size": 3, "num_epochs": 3, "seed": 0, **changed}
    return EpochSampler(INDICES, **settings)


def test_every_index_comes_once_per_epoch_in_a_new_order():
    seen = {epoch: [] for epoch in range(3)}
    for batch in order():
        for epoch, index in batch:
            seen[epoch].append(index)
    assert [sorted(indices) for indices in seen.values()] == [INDICES.tolist()] * 3
    assert len({tuple(indices) for indices in seen.values()}) == 3
    assert list(order()) == list(order()) != list(order(seed=1))
    assert list(order(num_epochs=5))[:9] == list(order())


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_start_position_continues_the_same_run(drop_last):
    whole = list(order(drop_last=drop_last))
    assert [len(batch) for batch in whole] == ([3, 3] if drop_last else [3, 3, 1]) * 3
    per_epoch = num_batches(len(INDICES), 3, drop_last=drop_last)
    for done in range(len(whole) + 1):
        rest = order(drop_last=drop_last, start=divmod(done, per_epoch))
        assert list(rest) == whole[done:]
        assert len(rest) == len(whole) - done
    assert list(order(drop_last=drop_last, start=(0, per_epoch))) == whole[per_epoch:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_every_batch_in_order(world_size):
    ranks = [list(order(shard=(rank, world_size))) for rank in range(world_size)]
    for whole, *parts in zip(order(), *ranks, strict=True):
        assert all(parts)  # a batch without images still exists on every rank
        assert {epoch for part in parts for epoch, _ in part} == {whole[0][0]}
        assert [key for part in parts for key in part if key[1] != NO_IMAGE] == whole


def test_runs_that_are_refused():
    for images, batch_size, message in (
        (2, 3, r"2 images do not fill one batch of 3: lower"),
        (0, 3, "no image to train on"),
        (2, 0, "batch size is 0"),
    ):
        with pytest.raises(DistillError, match=message):
            num_batches(images, batch_size, drop_last=True)
    assert num_batches(2, 3, drop_last=False) == 1
    with pytest.raises(DistillError, match=r"start at batch 4: an epoch has 3; resume"):
        order(start=(0, 4))


def whole_batch(size, *, full):
    rows = torch.arange(size)
    views = rows.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    distortion = rows.reshape(-1, 1, 1).expand(-1, 2, 4).float() if full else None
    second_view = views + 100 if full else None
    further = (views + 7, views + 8) if full else ()
    return Batch(views, second_view, rows + 20, rows + 40, 3, ("x.jpg",), distortion, further)


@pytest.mark.parametrize(
    ("size", "num_parts", "sizes"),
    [(7, 3, [2, 2, 3]), (2, 5, [1, 1]), (4, 1, [4]), (0, 2, [0])],
)
def test_split_cuts_the_rows_into_nearly_equal_parts(size, num_parts, sizes):
    batch = whole_batch(size, full=True)
    parts = batch.split(num_parts)
    assert sorted(len(part.index) for part in parts) == sizes
    for field in ("view", "second_view", "label", "index", "distortion"):
        rows = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(rows, getattr(batch, field))
    for number in range(2):
        rows = torch.cat([part.further_views[number] for part in parts])
        assert torch.equal(rows, batch.further_views[number])
    assert [part.bad for part in parts] == [("x.jpg",)] + [()] * (len(parts) - 1)
    assert {part.epoch for part in parts} == {3}
    for part in whole_batch(size, full=False).split(num_parts):
        assert (part.second_view, part.distortion, part.further_views) == (None, None, ())


def item(number, *, full):
    view = torch.full((3, 4, 4), number, dtype=torch.uint8)
    if not full:
        return Item(view, None, number + 2, number + 3, 5)
    distortion, further = torch.full((2, 6), number + 0.5), (view + 5, view + 6)
    return Item(view, view[:, :2, :2] + 1, number + 2, number + 3, 5, distortion, further)


FULL = {"has_second_view": True, "has_distortion": True, "num_further_views": 2}


def test_collate_keeps_rows_together_and_leaves_bad_ones_out():
    items = [item(7, full=True), BadItem("x.jpg", 5), BadItem(None, 5), item(1, full=True)]
    batch = collate(items, **FULL)
    assert [view[:, 0, 0, 0].tolist() for view in batch.further_views] == [[12, 6], [13, 7]]
    assert batch.view[:, 0, 0, 0].tolist() == [7, 1]
    assert batch.second_view[:, 0, 0, 0].tolist() == [8, 2]
    assert batch.label.tolist() == [9, 3]
    assert batch.index.tolist() == [10, 4]
    assert batch.distortion[:, 1, 5].tolist() == [7.5, 1.5]
    assert (batch.distortion.shape, batch.distortion.dtype) == ((2, 2, 6), torch.float32)
    assert (batch.epoch, batch.bad) == (5, ("x.jpg",))


@pytest.mark.parametrize("full", [False, True])
def test_a_batch_goes_through_the_loaders_pinning(full, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self.clone())
    batch = collate([item(1, full=full), BadItem("x.jpg", 5)], **(FULL if full else {}))
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


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), np.uint8)
    return ArrayImages(pixels, np.arange(NUM_IMAGES) % 4, list("abcd"), name="noise")


@pytest.fixture
def damaged(tmp_path, write_image, truncate):
    """Eight JPEGs, numbers 2 and 5 truncated."""
    for i in range(8):
        path = write_image(f"{i}.jpg", size=(32, 32), seed=i)
        if i in (2, 5):
            truncate(path)
    return FolderImages(tmp_path, [f"{i}.jpg" for i in range(8)], name="damaged")


def draw():
    return torch.rand(2, 4)


EVERYTHING = {"second_view": training_view(8), "distortion": draw, "num_crops": 3}


def views_of(images, *, seed=0, indices=None, **more):
    chosen = np.arange(len(images)) if indices is None else indices
    return TrainingViews(images, chosen, training_view(8), seed=seed, **more)


def load(images, *, views=None, seed=0, indices=None, **settings):
    settings = {"batch_size": 5, "num_epochs": 2, "num_workers": 0, **settings}
    shown = views_of(images, seed=seed, indices=indices, **(views or {}))
    return list(training_loader(shown, **settings))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.view, b.view)
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.index, b.index)
        assert (a.epoch, a.bad) == (b.epoch, b.bad)


def by_image(batches):
    """Return all that was drawn, by (epoch, image)."""
    return {
        (batch.epoch, int(index)): rows
        for batch in batches
        for index, *rows in zip(
            *(batch.index, batch.view, batch.second_view, batch.distortion, *batch.further_views),
            strict=True,
        )
    }


def test_a_batch_has_the_promised_shapes(images):
    batch = load(images, views={**EVERYTHING, "second_view": evaluation_view(12)})[0]
    assert isinstance(batch, Batch)
    assert (batch.view.shape, batch.view.dtype) == ((5, 3, 8, 8), torch.uint8)
    assert (batch.second_view.shape, batch.second_view.dtype) == ((5, 3, 12, 12), torch.uint8)
    assert (batch.distortion.shape, batch.distortion.dtype) == ((5, 2, 4), torch.float32)
    assert [view.shape for view in batch.further_views] == [(5, 3, 8, 8)] * 2
    assert batch.view.is_contiguous()
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.label.tolist() == images.labels[batch.index.numpy()].tolist()
    assert (batch.epoch, batch.bad) == (0, ())


@pytest.mark.parametrize("done", [2, 5, 7])
def test_a_resumed_run_sees_the_same_batches(images, done):
    rest = load(images, start_epoch=done // 5, start_batch=done % 5)
    assert_same(rest, load(images)[done:])


def test_all_that_is_drawn_depends_on_seed_epoch_and_image_alone(images):
    torch.manual_seed(1)
    whole = by_image(load(images, views=EVERYTHING))
    assert len(whole) == 2 * NUM_IMAGES
    for position in range(5):  # every epoch and image draws its own; crops may be whole by chance
        assert len({tuple(rows[position].flatten().tolist()) for rows in whole.values()}) > 43
    torch.manual_seed(2)
    for settings in (
        {"num_workers": 2},
        {"batch_size": 2, "indices": np.array([4, 17])},
        {"shard": (1, 2)},
    ):
        part = by_image(load(images, views=EVERYTHING, **settings))
        assert len(part) > 3
        for key, rows in part.items():
            assert all(map(torch.equal, rows, whole[key]))
    other = by_image(load(images, views=EVERYTHING, seed=1))
    assert not any(map(torch.equal, other[0, 3], whole[0, 3]))


def test_what_is_drawn_besides_leaves_the_first_view_alone(images):
    plain = load(images)
    for name, value in EVERYTHING.items():
        assert_same(load(images, views={name: value}), plain)
    first, second = load(images, views={"num_crops": 3})[0].further_views
    alone = load(images, views=EVERYTHING)[0].further_views
    assert torch.equal(first, alone[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain[0].view)


def test_global_generators_are_left_alone(images):
    torch.manual_seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    load(images, views=EVERYTHING)
    load(images, num_workers=1)
    list(evaluation_loader(images, evaluation_view(8), batch_size=5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_ranks_share_a_batch(images):
    ranks = [load(images, shard=(rank, 4)) for rank in range(4)]
    for batch, *parts in zip(load(images), *ranks, strict=True):
        assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
        filled = [part.view for part in parts if len(part.index)]
        assert torch.equal(torch.cat(filled), batch.view)
        assert {part.epoch for part in parts} == {batch.epoch}
        assert all(part.bad == () for part in parts)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_named_and_left_out(damaged, num_workers):
    batches = load(damaged, batch_size=4, num_epochs=1, num_workers=num_workers)
    assert sorted(i for batch in batches for i in batch.index.tolist()) == [0, 1, 3, 4, 6, 7]
    bad = sorted(name for batch in batches for name in batch.bad)
    assert bad == [damaged.describe(2), damaged.describe(5)]
    for batch in batches:
        assert len(batch.view) == len(batch.label) == len(batch.index)
        assert len(batch.index) + len(batch.bad) == 4
        assert (batch.label == -1).all()
    (batch,) = evaluation_loader(damaged, evaluation_view(8), batch_size=8, num_workers=num_workers)
    assert batch.index.tolist() == [0, 1, 3, 4, 6, 7]
    assert len(batch.bad) == 2


def test_a_batch_of_bad_images_only_is_empty(damaged):
    settings = {"indices": np.array([5, 2]), "num_epochs": 4, "start_epoch": 3}
    (batch,) = load(damaged, views=EVERYTHING, **settings)
    assert batch.distortion.shape == (0, 2, 0)
    for view in (batch.view, batch.second_view, *batch.further_views):
        assert (view.shape, view.dtype) == ((0, 3, 0, 0), torch.uint8)
    assert batch.label.shape == batch.index.shape == (0,)
    assert batch.index.dtype == torch.int64
    assert (batch.epoch, len(batch.bad), len(batch.further_views)) == (3, 2, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_goes_in_order(images, num_workers):
    view = evaluation_view(8)
    for indices in (None, np.array([9, 2, 11])):
        settings = {"indices": indices, "batch_size": 2, "num_workers": num_workers}
        batches = list(evaluation_loader(images, view, **settings))
        expected = list(range(NUM_IMAGES)) if indices is None else [9, 2, 11]
        assert [i for batch in batches for i in batch.index.tolist()] == expected
        assert torch.equal(batches[1].view[0], view(images.load(expected[2])))
        assert {(batch.second_view, batch.epoch, batch.bad) for batch in batches} == {(None, 0, ())}


def test_random_evaluation_views_follow_seed_number_and_image(images):
    def views(*draw, indices):
        loader = evaluation_loader(
            images, training_view(8), indices=np.array(indices), batch_size=9, draw=draw
        )
        return next(iter(loader)).view

    first = views(3, 1, indices=[4, 17])
    assert torch.equal(views(3, 1, indices=[17, 4]).flip(0), first)
    for other in (views(3, 2, indices=[4, 17]), views(4, 1, indices=[4, 17])):
        assert not torch.equal(other[0], first[0])
