"""CompRess over ranks, its queue spread over them or whole on each, against one process."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import distributed
from distill.errors import DistillError
from distill.kernels import blocked
from distill.losses.anchors import AnchorQueue
from distill.losses.compress import CompRess

K, DT, DS = 100, 12, 7
VARIANTS = ["one-queue", "two-queue", "two-queue-momentum"]


class Case(NamedTuple):
    """Rows of the batch, anchors enqueued before it, and how it is cut (None: evenly)."""

    num_rows: int = 7
    num_enqueued: int = 130
    first_rank_has_none: bool = False
    dtype: torch.dtype = torch.float32
    mask_self: bool = True
    implementation: str = "auto"


CASES = {
    "full": Case(),
    "full, even": Case(12),
    "ranks without a row": Case(2),
    "the first without a row": Case(5, first_rank_has_none=True),
    "shards without an anchor": Case(7, 2),
    "one anchor, which rows 0 and 1 own": Case(7, 1),
    "filling": Case(9, 50),
    "no mask": Case(7, 60, mask_self=False),
    "float64": Case(dtype=torch.float64),
    "bfloat16": Case(dtype=torch.bfloat16),
}


FUSED = {
    "fused": Case(7, 60, implementation="triton"),
    "fused, one anchor, which rows 0 and 1 own": Case(7, 1, implementation="triton"),
    "fused, bfloat16": Case(7, 60, dtype=torch.bfloat16, implementation="triton"),
}


def rows(number: int, width: int, seed: int) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)) * 3


def counts_of(case: Case, world: int) -> list[int]:
    if case.first_rank_has_none and world > 1:
        return [0, *map(len, np.array_split(range(case.num_rows), world - 1))]
    return [len(part) for part in np.array_split(range(case.num_rows), world)]


def step(case: Case, variant: str, sharding: str = "none") -> dict[str, Any]:
    """Fill a queue, take loss and gradient of this rank's part of a batch, enqueue the batch."""
    rank, world = distributed.rank(), distributed.world_size()
    student_dim, width = (None, DT) if variant == "one-queue" else (DS, DS)
    shard = (rank, world) if sharding == "ranks" else (0, 1)
    queue = AnchorQueue(K, DT, student_dim, dtype=case.dtype, shard=shard)
    temperatures = {"temperature": 0.2, "student_temperature": 0.3}
    how = {"mask_self": case.mask_self, "implementation": case.implementation}
    compress = CompRess(queue, **how, **temperatures)
    n = case.num_enqueued
    # A batch of image 3 alone, then images that each have several anchors.
    compress.enqueue(rows(1, DT, 0), rows(1, DS, 1), torch.tensor([3]))
    compress.enqueue(rows(n - 1, DT, 2), rows(n - 1, DS, 3), torch.arange(n - 1) % 20 + 4)
    counts = counts_of(case, world)
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    teacher, student, key = (
        rows(case.num_rows, size, seed) for size, seed in ((DT, 4), (width, 5), (DS, 6))
    )
    index = torch.arange(case.num_rows) % 6 * 5 + 3
    index[1] = 3
    student = student[mine].clone().requires_grad_()
    loss = compress(teacher, student, index, row_counts=counts)
    loss.backward()
    assert loss.shape == ()
    compress.enqueue(teacher, rows(case.num_rows, DS, 5) if variant == "two-queue" else key, index)
    with torch.no_grad():
        unrecorded = compress(teacher, student, index, row_counts=counts).item()
    return {
        "loss": loss.item(),
        "mean": distributed.mean_over_ranks(loss.item()),
        "unrecorded": distributed.mean_over_ranks(unrecorded),
        "gradient": student.grad,
        "anchors": queue.anchors(),
    }


def small_blocks() -> None:
    blocked._LOGITS_PER_BLOCK["cpu"] = 1


def on_a_rank() -> dict[str, Any]:
    small_blocks()
    results: dict[str, Any] = {
        f"{name}, {variant}, {sharding}": step(case, variant, sharding)
        for name, case in CASES.items()
        for variant in VARIANTS
        for sharding in ("ranks", "none")
    }
    empty = CompRess(AnchorQueue(K, DT, shard=(distributed.rank(), distributed.world_size())))
    counts = [2] * distributed.world_size()
    teacher, index = rows(sum(counts), DT, 0), torch.arange(sum(counts))
    results["empty"] = empty(teacher, rows(2, DT, 1), index, row_counts=counts)
    empty.enqueue(teacher, None, index)
    try:
        empty(teacher, rows(3, DT, 1), index, row_counts=counts)
    except DistillError as error:
        results["mistake"] = str(error)
    return results


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_are_one_process_with_the_global_batch(run_ranks, monkeypatch, world):
    monkeypatch.setitem(blocked._LOGITS_PER_BLOCK, "cpu", 1)
    ranks = run_ranks(on_a_rank, world)
    for name, case in CASES.items():
        for variant in VARIANTS:
            alone = step(case, variant)
            for sharding in ("ranks", "none"):
                found = [result[f"{name}, {variant}, {sharding}"] for result in ranks]
                check(found, alone, case, sharded=sharding == "ranks")
    for rank, result in enumerate(ranks):
        assert result["empty"] is None
        assert f"rank {rank} must pass {2 * world} (of all ranks) and 2" in result["mistake"]


def on_a_rank_fused() -> dict[str, Any]:
    return {name: step(case, "two-queue", "ranks") for name, case in FUSED.items()}


@pytest.mark.ddp
def test_fused_ranks_are_one_process(run_ranks):
    if torch.cuda.is_available():
        pytest.skip("ranks on a CPU need Triton's interpreter")
    ranks = run_ranks(on_a_rank_fused, 3)
    for name, case in FUSED.items():
        alone = step(case._replace(implementation="blocked"), "two-queue")
        check([result[name] for result in ranks], alone, case, sharded=True)


def check(found: list[dict], alone: dict, case: Case, *, sharded: bool) -> None:
    world = len(found)
    # bfloat16 rounds each block's share of the gradient, and the shards are other blocks.
    tolerance = 1e-2 if case.dtype == torch.bfloat16 else 1e-5
    # The fused kernels do not round bfloat16 similarities, as PyTorch's products on a CPU do.
    of_loss = tolerance if case.implementation == "triton" else 1e-5
    for result in found:
        assert result["mean"] == pytest.approx(alone["loss"], rel=of_loss, abs=1e-6)
        assert result["unrecorded"] == pytest.approx(alone["unrecorded"], rel=of_loss, abs=1e-6)
        if sharded:
            assert result["loss"] == found[0]["loss"]
    gradient = torch.cat([result["gradient"] for result in found]) / world
    error = (gradient - alone["gradient"]).abs().max()
    assert error <= tolerance * alone["gradient"].abs().max() + 1e-9
    for rank, result in enumerate(found):
        for name in ("teacher", "student", "image_index"):
            expected = getattr(alone["anchors"], name)
            expected = expected[rank::world] if sharded else expected
            assert torch.equal(getattr(result["anchors"], name), expected)


def test_the_reference_refuses_shards():
    queue = AnchorQueue(K, DT, shard=(0, 2))
    with pytest.raises(
        DistillError, match=r"needs all anchors on every rank.*--queue-sharding none"
    ):
        CompRess(queue, implementation="reference")
