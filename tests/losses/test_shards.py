"""A queue in shards against the queue in one piece, bit for bit; no process is started for it."""

import itertools

import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.anchors import AnchorQueue

WORLDS = [1, 2, 3, 4]
SIZES = [100, 5, 2]  # larger than a batch, smaller, fewer anchors than ranks
BATCHES = [7, 0, 1, 32, 2, 64, 7, 130, 3, 33]


def batch(size: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(first)
    teacher, student = (torch.randn(size, width, generator=generator) for width in (6, 3))
    return teacher, student, torch.arange(first, first + size)


def queues(size: int, world: int, student_dim: int | None = 3, **options) -> list[AnchorQueue]:
    return [AnchorQueue(size, 6, student_dim, shard=(r, world), **options) for r in range(world)]


def enqueued(shards: list[AnchorQueue], num_batches: int = len(BATCHES)) -> list[AnchorQueue]:
    total = 0
    for size in BATCHES[:num_batches]:
        for shard in shards:
            shard.enqueue(*batch(size, total))
        total += size
    return shards


def assert_same(shards: list[AnchorQueue], whole: AnchorQueue) -> None:
    expected = whole.anchors()
    for rank, shard in enumerate(shards):
        assert (shard.pointer, shard.num_valid) == (whole.pointer, whole.num_valid)
        found = shard.anchors()
        for name in ("teacher", "student", "image_index"):
            rows = getattr(expected, name)[rank :: len(shards)]
            assert torch.equal(getattr(found, name), rows), (name, rank)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_the_shards_are_the_queue_after_every_batch(size, world):
    whole, shards, total = AnchorQueue(size, 6, 3), queues(size, world), 0
    for number in BATCHES:
        rows = batch(number, total)
        total += number
        for queue in (whole, *shards):
            queue.enqueue(*rows)
        assert_same(shards, whole)
        held = [len(shard.anchors()) for shard in shards]
        assert sum(held) == whole.num_valid
        assert max(held) - min(held) <= 1


@pytest.mark.parametrize("world", WORLDS)
def test_random_rows_do_not_depend_on_the_ranks(world):
    options = {"init": "random", "seed": 3, "dtype": torch.bfloat16}
    whole = AnchorQueue(5000, 6, 3, **options)  # drawn in two blocks
    assert_same(queues(5000, world, **options), whole)


@pytest.mark.parametrize("student_dim", [3, None])
@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_holds_its_share_of_the_memory(world, student_dim):
    whole = AnchorQueue(100, 6, student_dim)
    shards = queues(100, world, student_dim)
    assert sum(shard.num_bytes for shard in shards) == whole.num_bytes
    largest = max(shard.num_bytes for shard in shards)
    assert largest <= whole.num_bytes * -(-100 // world) / 100
    sizes = (100, 6, student_dim, torch.float32)
    assert AnchorQueue.required_bytes(*sizes, num_shards=world) == largest
    for shard in shards:
        storages = [tensor.untyped_storage().nbytes() for tensor in shard.state_dict()["banks"]]
        assert sum(storages) < shard.num_bytes  # a view of the whole would keep all of it


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("saved", "restored"), itertools.product(WORLDS, WORLDS))
def test_any_number_of_ranks_reads_the_shards_of_any_other(size, saved, restored):
    num_batches = 4  # 40 rows: the largest queue is not yet full
    states = [shard.state_dict() for shard in enqueued(queues(size, saved), num_batches)]
    shards = queues(size, restored)
    for shard in shards:
        shard.load_state_dict(*states)
    assert_same(shards, *enqueued([AnchorQueue(size, 6, 3)], num_batches))


def test_shards_that_do_not_belong_together_are_refused():
    states = [shard.state_dict() for shard in enqueued(queues(10, 4))]
    queue = AnchorQueue(10, 6, 3)
    for wrong in (states[:3], [*states[1:], states[0]], [states[0]] * 4, [*states, states[0]]):
        with pytest.raises(DistillError, match="the saved queue has banks"):
            queue.load_state_dict(*wrong)
    later = {**states[2], "pointer": states[2]["pointer"] + 1}
    with pytest.raises(DistillError, match="4 shards of the saved queue were written at different"):
        queue.load_state_dict(*states[:2], later, states[3])
    assert queue.num_valid == 0
    assert not queue.state_dict()["banks"][0].any()


def test_a_shard_describes_itself():
    text = repr(AnchorQueue(10, 6, 3, shard=(1, 4)))
    assert text.startswith("AnchorQueue(10 x 6 float32 and 10 x 3 float32, 0 of 10 real")
    assert text.endswith("on rank 1 of 4)")
