"""The fused enqueue against PyTorch's normalization, written row by row."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.kernels.fused.enqueue import enqueue_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def expected(
    banks: list[Tensor], rows: list[Tensor], start: int, size: int, shard: tuple[int, int]
) -> list[Tensor]:
    banks = [bank.clone() for bank in banks]
    for i in range(len(rows[0])):
        position = (start + i) % size
        if position % shard[1] == shard[0]:
            for bank, row in zip(banks, rows, strict=True):
                bank[position // shard[1]] = F.normalize(row[i].float(), dim=0).to(bank.dtype)
    return banks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_banks", "start", "shard"), [(1, 0, (0, 1)), (2, 19, (0, 1)), (2, 19, (2, 3))]
)
def test_rows_are_unit_cast_and_in_their_place(dtype, source, num_banks, start, shard, device):
    size, widths = 23, (40, 24)[:num_banks]
    held = len(range(shard[0], size, shard[1]))
    banks = [torch.full((held, width), 7.0, dtype=dtype, device=device) for width in widths]
    rows = [3 * torch.randn(9, width, device=device).to(source) for width in widths]
    index, images = torch.full((held,), -1, device=device), torch.arange(9, device=device)
    right = expected(banks, rows, start, size, shard)
    enqueue_rows(banks, index, rows, images, start=start, size=size, shard=shard)
    for bank, wanted in zip(banks, right, strict=True):
        # Sums of squares may be added up in another order: one unit in the last place.
        torch.testing.assert_close(bank, wanted, rtol=torch.finfo(dtype).eps, atol=1e-7)
    places = [(start + i) % size for i in range(9)]
    mine = {g // shard[1]: i for i, g in enumerate(places) if g % shard[1] == shard[0]}
    assert index.tolist() == [mine.get(j, -1) for j in range(held)]


def test_rows_of_zeros_and_of_no_numbers_stay(device):
    bank = torch.ones(4, 5, device=device)
    rows = torch.zeros(2, 5, device=device)
    rows[1, 2] = float("nan")
    index = torch.zeros(4, dtype=torch.int64, device=device)
    enqueue_rows(
        [bank], index, [rows], torch.arange(2, device=device), start=1, size=4, shard=(0, 1)
    )
    assert torch.equal(bank[1], torch.zeros(5, device=device))
    assert bank[2].isnan().all()
    assert torch.equal(bank[[0, 3]], torch.ones(2, 5, device=device))


def test_an_empty_batch_writes_nothing(device):
    bank, index = torch.ones(4, 5, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    enqueue_rows([bank], index, [bank[:0]], index[:0], start=1, size=4, shard=(0, 1))
    assert torch.equal(bank, torch.ones(4, 5, device=device))
