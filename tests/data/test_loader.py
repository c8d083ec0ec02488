import os
import random

import numpy as np
import pytest
import torch

from distill import distributed
from distill.data import workers as views_module
from distill.data.images import ArrayImages, FolderImages
from distill.data.loader import Batch, TrainingViews, evaluation_loader, training_loader
from distill.data.views import evaluation_view, small_view, training_view
from distill.data.workers import default_num_workers, num_usable_cores

NUM_IMAGES = 23


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


def noisy_views(images, *, seed=0, indices=None, second_view=None, **more):
    chosen = np.arange(len(images)) if indices is None else indices
    return TrainingViews(images, chosen, training_view(8), second_view, seed=seed, **more)


def load(
    images, *, seed=0, second_view=None, distortion=None, further=(), indices=None, **settings
):
    more = {"distortion": distortion, "further_views": further}
    views = noisy_views(images, seed=seed, indices=indices, second_view=second_view, **more)
    settings = {"batch_size": 5, "num_epochs": 2, "num_workers": 0, **settings}
    return list(training_loader(views, **settings))


def draw():
    return torch.rand(2, 4)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.view, b.view)
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.index, b.index)
        assert (a.epoch, a.bad) == (b.epoch, b.bad)


def test_a_batch_has_the_promised_shapes(images):
    batch = load(images, second_view=evaluation_view(12))[0]
    assert isinstance(batch, Batch)
    assert (batch.view.shape, batch.view.dtype) == ((5, 3, 8, 8), torch.uint8)
    assert (batch.second_view.shape, batch.second_view.dtype) == ((5, 3, 12, 12), torch.uint8)
    assert batch.view.is_contiguous()
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.label.tolist() == images.labels[batch.index.numpy()].tolist()
    assert (batch.epoch, batch.bad) == (0, ())
    assert load(images)[0].second_view is None


def test_every_image_comes_once_per_epoch(images):
    seen = {0: [], 1: []}
    for batch in load(images):
        seen[batch.epoch] += batch.index.tolist()
    assert [sorted(indices) for indices in seen.values()] == [list(range(NUM_IMAGES))] * 2


def test_views_and_order_do_not_depend_on_the_workers(images):
    expected = load(images)
    for num_workers in (1, 2):
        assert_same(load(images, num_workers=num_workers), expected)


@pytest.mark.parametrize("done", [2, 5, 7])
def test_a_resumed_run_sees_the_same_batches(images, done):
    rest = load(images, start_epoch=done // 5, start_batch=done % 5)
    assert_same(rest, load(images)[done:])


def test_a_view_depends_on_its_own_image_only(images):
    def by_index(batches):
        return {
            (batch.epoch, int(index)): view
            for batch in batches
            for index, view in zip(batch.index, batch.view, strict=True)
        }

    whole = by_index(load(images))
    part = by_index(load(images, indices=np.array([4, 17, 20]), batch_size=2))
    assert set(part) == {(epoch, index) for epoch in (0, 1) for index in (4, 17, 20)}
    assert all(torch.equal(whole[key], view) for key, view in part.items())


def test_a_second_view_leaves_the_first_alone(images):
    assert_same(load(images, second_view=training_view(8)), load(images))


FURTHER = [training_view(8), small_view(4)]


def test_further_views_are_others_and_leave_the_first_alone(images):
    plain, batches = load(images), load(images, further=FURTHER)
    assert_same(batches, plain)
    for batch in batches:
        large, small = batch.further_views
        assert (large.shape, small.shape) == (batch.view.shape, (len(batch.index), 3, 4, 4))
        assert not torch.equal(large, batch.view)
    assert not any(torch.equal(batches[0].further_views[0][i], batches[0].view[i]) for i in (0, 1))


def test_a_further_view_depends_on_seed_epoch_image_and_number_alone(images):
    def views(**settings):
        found = load(images, **settings)
        order = [batch.index.argsort() for batch in found]
        return [batch.further_views[0][rows] for batch, rows in zip(found, order, strict=True)]

    expected = views(further=FURTHER, batch_size=23)
    assert not torch.equal(*expected)  # two epochs
    for settings in (
        {"further": FURTHER[:1]},
        {"further": FURTHER, "num_workers": 2},
        {"further": FURTHER, "second_view": training_view(8), "distortion": draw},
    ):
        assert all(map(torch.equal, views(batch_size=23, **settings), expected))
    assert not torch.equal(views(further=FURTHER, batch_size=23, seed=1)[0], expected[0])
    swapped = load(images, further=FURTHER[::-1], batch_size=23)[0]
    second = swapped.further_views[1][swapped.index.argsort()]
    assert not torch.equal(second, expected[0])  # of another number


def test_without_a_readable_image_further_views_have_no_rows(damaged):
    batch = load(damaged, further=FURTHER, indices=np.array([2]))[0]
    assert [view.shape for view in batch.further_views] == [(0, 3, 0, 0)] * 2


def test_distortions_leave_the_views_alone(images):
    views = {"second_view": training_view(8)}
    plain, distorted = load(images, **views), load(images, **views, distortion=draw)
    assert_same(distorted, plain)
    for a, b in zip(distorted, plain, strict=True):
        assert torch.equal(a.second_view, b.second_view)
        assert (a.distortion.shape, a.distortion.dtype) == ((len(a.index), 2, 4), torch.float32)
        assert b.distortion is None


def test_second_views_and_distortions_depend_on_seed_epoch_and_index_only(images):
    def by_index(batches):
        return {
            (batch.epoch, int(index)): (*rows,)
            for batch in batches
            for index, *rows in zip(batch.index, batch.second_view, batch.distortion, strict=True)
        }

    both = {"second_view": training_view(8), "distortion": draw}
    whole = by_index(load(images, **both))
    assert len(whole) == 2 * NUM_IMAGES
    assert len({tuple(distortion.flatten().tolist()) for _, distortion in whole.values()}) == 46
    for settings in ({"num_workers": 2}, {"batch_size": 2, "indices": np.array([4, 17])}):
        for key, rows in by_index(load(images, **both, **settings)).items():
            assert all(map(torch.equal, rows, whole[key]))


def test_seed_and_epoch_change_the_views(images):
    views = noisy_views(images)
    assert torch.equal(views[0, 3].view, views[0, 3].view)
    assert not torch.equal(views[0, 3].view, views[1, 3].view)
    assert not torch.equal(views[0, 3].view, noisy_views(images, seed=1)[0, 3].view)


def test_global_generators_are_left_alone(images):
    torch.manual_seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    load(images)
    load(images, num_workers=1)
    list(evaluation_loader(images, evaluation_view(8), batch_size=5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_views_do_not_depend_on_the_global_generator(images):
    torch.manual_seed(1)
    first = load(images)
    torch.manual_seed(2)
    assert_same(load(images), first)


def test_ranks_share_a_batch(images):
    whole = load(images)
    ranks = [load(images, shard=(rank, 4)) for rank in range(4)]
    for batch, *parts in zip(whole, *ranks, strict=True):
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


def test_a_batch_of_bad_images_only_is_empty(damaged):
    (batch,) = load(
        damaged,
        indices=np.array([5, 2]),
        num_epochs=4,
        start_epoch=3,
        second_view=evaluation_view(8),
        distortion=draw,
    )
    assert batch.distortion.shape == (0, 2, 0)
    assert batch.view.shape == batch.second_view.shape == (0, 3, 0, 0)
    assert batch.label.shape == batch.index.shape == (0,)
    assert batch.view.dtype == torch.uint8
    assert batch.index.dtype == torch.int64
    assert (batch.epoch, len(batch.bad)) == (3, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_goes_in_order(images, num_workers):
    view = evaluation_view(8)
    for indices in (None, np.array([9, 2, 11])):
        batches = list(
            evaluation_loader(images, view, indices=indices, batch_size=2, num_workers=num_workers)
        )
        expected = list(range(NUM_IMAGES)) if indices is None else [9, 2, 11]
        assert [i for batch in batches for i in batch.index.tolist()] == expected
        assert torch.equal(batches[1].view[0], view(images.load(expected[2])))
        assert {(batch.second_view, batch.epoch, batch.bad) for batch in batches} == {(None, 0, ())}


def test_evaluation_names_bad_images(damaged):
    batches = evaluation_loader(damaged, evaluation_view(8), batch_size=8, num_workers=0)
    (batch,) = batches
    assert batch.index.tolist() == [0, 1, 3, 4, 6, 7]
    assert len(batch.bad) == 2


def test_default_workers(images, damaged, monkeypatch):
    assert default_num_workers(images) == 0
    monkeypatch.setattr(views_module, "num_usable_cores", lambda: 64)
    assert default_num_workers(damaged) == 8
    monkeypatch.setattr(views_module, "num_usable_cores", lambda: 3)
    assert default_num_workers(damaged) == 3
    monkeypatch.setattr(distributed, "num_local_ranks", lambda: 2)
    assert default_num_workers(damaged) == 1
    monkeypatch.setattr(distributed, "num_local_ranks", lambda: 4)
    assert default_num_workers(damaged) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_usable_cores_follow_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert num_usable_cores() == 3
