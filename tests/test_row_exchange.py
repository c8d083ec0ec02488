from typing import Any

import pytest
import torch

from distill import distributed
from distill.distributed import all_gather_variable, own_rows, row_counts, scatter_sum

COUNTS = [2, 0, 3]


def rows(rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.arange(COUNTS[rank] * 2).reshape(-1, 2) + 100 * rank).to(dtype)


def partial_sums(rank: int) -> torch.Tensor:
    return torch.randn(sum(COUNTS), 4, generator=torch.Generator().manual_seed(rank))


def exchange() -> dict[str, Any]:
    rank = distributed.rank()
    mine = rows(rank).requires_grad_()
    sums = partial_sums(rank)
    return {
        "counts": row_counts(COUNTS[rank]),
        "own": own_rows(COUNTS),
        "gathered": all_gather_variable(mine, COUNTS),
        "strided": all_gather_variable(rows(rank).t().contiguous().t(), COUNTS),
        "indices": all_gather_variable(rows(rank, torch.int64)[:, 0], COUNTS),
        "summed": scatter_sum(sums, COUNTS),
        "untouched": torch.equal(sums, partial_sums(rank)),
    }


@pytest.mark.ddp
def test_unequal_rows_are_gathered_and_summed_in_order(run_ranks):
    everything = torch.cat([rows(rank) for rank in range(3)])
    total = sum(partial_sums(rank) for rank in range(3))
    for rank, result in enumerate(run_ranks(exchange, 3)):
        assert result["counts"] == COUNTS
        assert torch.equal(everything[result["own"]], rows(rank))
        assert torch.equal(result["gathered"], everything)
        assert not result["gathered"].requires_grad
        assert torch.equal(result["strided"], everything)
        assert torch.equal(result["indices"], everything[:, 0].long())
        torch.testing.assert_close(result["summed"], total[result["own"]])
        assert result["untouched"]


def test_one_process_has_all_rows():
    tensor = torch.randn(3, 2)
    assert row_counts(3) == [3]
    assert own_rows([3]) == slice(0, 3)
    assert all_gather_variable(tensor, [3]) is tensor
    assert scatter_sum(tensor, [3]) is tensor
