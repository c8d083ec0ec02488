import numpy as np
import pytest

from distill.data.loader import NO_IMAGE, EpochSampler, num_batches
from distill.errors import DistillError

INDICES = np.array([3, 5, 8, 13, 21, 34, 55])


def batches(**changed):
    settings = {"batch_size": 3, "num_epochs": 3, "seed": 0, **changed}
    return EpochSampler(INDICES, **settings)


def test_every_index_once_per_epoch_in_a_new_order():
    seen = {epoch: [] for epoch in range(3)}
    for batch in batches():
        for epoch, index in batch:
            seen[epoch].append(index)
    assert [sorted(indices) for indices in seen.values()] == [INDICES.tolist()] * 3
    assert len({tuple(indices) for indices in seen.values()}) == 3


def test_order_follows_the_seed():
    assert list(batches()) == list(batches())
    assert list(batches()) != list(batches(seed=1))


def test_drop_last_leaves_out_the_short_batch():
    assert [len(batch) for batch in batches()] == [3, 3, 1] * 3
    assert [len(batch) for batch in batches(drop_last=True)] == [3, 3] * 3


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_start_position_continues_the_same_run(drop_last):
    whole = list(batches(drop_last=drop_last))
    per_epoch = num_batches(len(INDICES), 3, drop_last=drop_last)
    for done in range(len(whole) + 1):
        rest = batches(drop_last=drop_last, start=divmod(done, per_epoch))
        assert list(rest) == whole[done:]
        assert len(rest) == len(whole) - done
    after_epoch = batches(drop_last=drop_last, start=(0, per_epoch))
    assert list(after_epoch) == whole[per_epoch:]


def test_a_longer_run_begins_like_a_shorter_one():
    assert list(batches(num_epochs=5))[:9] == list(batches())


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_every_batch_in_order(world_size):
    ranks = [list(batches(shard=(rank, world_size))) for rank in range(world_size)]
    for whole, *parts in zip(batches(), *ranks, strict=True):
        assert all(parts)  # a batch without images still exists on every rank
        assert {epoch for part in parts for epoch, _ in part} == {whole[0][0]}
        assert [key for part in parts for key in part if key[1] != NO_IMAGE] == whole


def test_num_batches():
    assert num_batches(7, 3, drop_last=False) == 3
    assert num_batches(7, 3, drop_last=True) == 2
    assert num_batches(6, 3, drop_last=False) == num_batches(6, 3, drop_last=True) == 2
    assert num_batches(2, 3, drop_last=False) == 1


def test_runs_without_a_batch_are_refused():
    with pytest.raises(DistillError, match=r"2 images do not fill one batch of 3: lower"):
        num_batches(2, 3, drop_last=True)
    with pytest.raises(DistillError, match="no image to train on"):
        num_batches(0, 3, drop_last=False)
    with pytest.raises(DistillError, match="batch size is 0"):
        num_batches(2, 0, drop_last=False)


def test_a_start_beyond_the_epoch_is_refused():
    with pytest.raises(DistillError, match=r"start at batch 4: an epoch has 3; resume"):
        batches(start=(0, 4))
