"""A queue filled by the fused kernel is the queue that PyTorch fills."""

import pytest
import torch

pytest.importorskip("triton")

from distill.kernels import fused
from distill.kernels.fused import enqueue as fused_enqueue
from distill.losses.anchors import AnchorQueue


@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
@pytest.mark.parametrize("student_dim", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_write_agree(shard, student_dim, dtype, monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    queues = []
    for preferred in (False, True):
        monkeypatch.setattr(fused, "preferred", lambda _, answer=preferred: answer)
        generator = torch.Generator().manual_seed(0)
        queue = AnchorQueue(23, 10, student_dim, dtype=dtype, device=device, shard=shard)
        for size in (7, 7, 7, 7, 30, 1):  # fills, wraps, and once exceeds the queue
            rows = [torch.randn(size, width, generator=generator) for width in (10, 6)]
            index = torch.randint(1000, (size,), generator=generator)
            queue.enqueue(*(x.to(device) for x in (*rows, index)))
        queues.append(queue)
    plain, fast = (queue.anchors() for queue in queues)
    assert (queues[0].pointer, queues[0].num_valid) == (queues[1].pointer, queues[1].num_valid)
    assert torch.equal(plain.image_index, fast.image_index)
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(fast.teacher, plain.teacher, rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(fast.student, plain.student, rtol=tolerance, atol=1e-7)


def test_a_bank_too_wide_for_a_program_is_written_by_pytorch(monkeypatch):
    monkeypatch.setattr(fused, "preferred", lambda _: True)
    monkeypatch.setattr(fused_enqueue, "enqueue_rows", None)
    queue = AnchorQueue(4, 16385)
    queue.enqueue(torch.ones(2, 16385), None, torch.arange(2))
    torch.testing.assert_close(queue.anchors().teacher, torch.full((2, 16385), 16385**-0.5))
