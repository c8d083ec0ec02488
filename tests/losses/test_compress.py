"""CompRess against twelve steps of the published program, for all three variants."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.anchors import AnchorQueue
from distill.losses.base import BuildContext
from distill.losses.compress import CompRess

ORACLE = Path(__file__).parents[1] / "oracles" / "compress_loss_trace.npz"


@pytest.fixture(scope="module")
def trace() -> dict[str, Tensor]:
    with np.load(ORACLE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def started_queue(trace: dict[str, Tensor], variant: str, dtype: torch.dtype) -> AnchorQueue:
    """A full queue with the oracle's initial anchors, which are not unit rows."""
    banks = [trace[f"{variant}/initial_teacher_anchors"]]
    if variant != "one_queue":
        banks.append(trace[f"{variant}/initial_student_anchors"])
    queue = AnchorQueue(60, *(bank.shape[1] for bank in banks), dtype=dtype, init="random")
    state = queue.state_dict()
    queue.load_state_dict({**state, "banks": [bank.to(dtype) for bank in banks]})
    return queue


@pytest.mark.parametrize("variant", ["two_queue_momentum", "two_queue", "one_queue"])
@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("reference", torch.float64), ("blocked", torch.float32), ("blocked", torch.float64)],
)
def test_it_reproduces_the_published_program(trace, variant, implementation, dtype):
    queue = started_queue(trace, variant, dtype)
    compress = CompRess(queue, implementation=implementation)
    for step in range(12):
        teacher = trace[f"{variant}/teacher"][step].to(dtype)
        student = trace[f"{variant}/student"][step].to(dtype).requires_grad_()
        index = torch.arange(8 * step, 8 * step + 8)
        loss = compress(teacher, student, index)
        loss.backward()
        assert loss.item() == pytest.approx(trace[f"{variant}/loss"][step].item(), rel=1e-5)
        expected = trace[f"{variant}/student_grad"][step].to(dtype)
        assert (student.grad - expected).abs().max() < 1e-5 * expected.abs().max()
        keys = {
            "two_queue_momentum": lambda step=step: trace["two_queue_momentum/student_key"][step],
            "two_queue": lambda student=student: student,
            "one_queue": lambda: None,
        }
        compress.enqueue(teacher, keys[variant](), index)
    anchors = queue.anchors()
    assert queue.pointer == 96 % 60
    torch.testing.assert_close(
        anchors.teacher.float(), trace[f"{variant}/final_teacher_anchors"], rtol=1e-5, atol=1e-6
    )
    if variant != "one_queue":
        torch.testing.assert_close(
            anchors.student.float(), trace[f"{variant}/final_student_anchors"], rtol=1e-5, atol=1e-6
        )


def test_it_has_no_loss_while_no_anchor_is_real():
    compress = CompRess(AnchorQueue(10, 4, 3))
    teacher, student, index = torch.randn(2, 4), torch.randn(2, 3), torch.arange(2)
    assert compress(teacher, student, index) is None
    compress.enqueue(teacher, student, index)
    assert compress(teacher, student, index + 2) is not None


def test_an_images_own_old_embedding_is_left_out():
    teacher, student, index = torch.randn(4, 6), torch.randn(4, 5), torch.arange(4)
    queue = AnchorQueue(10, 6, 5)
    queue.enqueue(teacher, student, index)
    masked = CompRess(queue)(teacher, student, index)
    others = torch.tensor([9, 9, 9, 9])
    whole = CompRess(queue, mask_self=False)(teacher, student, index)
    assert CompRess(queue)(teacher, student, others).item() == whole.item()
    assert masked.item() != whole.item()


def test_options_reach_the_loss():
    assert CompRess.Options().mask_self
    options = CompRess.Options("two-queue-momentum", "queue", 7, queue_dtype="bf16", momentum=0.7)
    options = replace(options, temperature=0.3, student_temperature=0.2, regression_share=0.0)
    context = BuildContext(student_dim=4, teacher_dim=6)
    for mask_self in (True, False):
        loss = CompRess.build(replace(options, mask_self=mask_self), context)
        assert loss.mask_self is mask_self
        assert (loss.temperature, loss.student_temperature, loss.momentum) == (0.3, 0.2, 0.7)
        assert (loss.queue.size, loss.queue.num_valid, loss.queue.one_bank) == (7, 0, False)


def test_the_scale_of_embeddings_does_not_matter():
    torch.manual_seed(0)
    compress = CompRess(AnchorQueue(20, 6, 5, init="random"))
    teacher, student, index = torch.randn(4, 6), torch.randn(4, 5), torch.arange(4)
    loss = compress(teacher, student, index)
    assert compress(100 * teacher, student / 100, index).item() == pytest.approx(loss.item())
    half = compress(teacher.bfloat16(), student.bfloat16(), index)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss.item(), rel=0.02)


def test_mistakes_are_told_at_once():
    queue = AnchorQueue(10, 4, 3)
    with pytest.raises(DistillError, match="student_temperature is 0"):
        CompRess(queue, student_temperature=0)
    with pytest.raises(DistillError, match="unknown implementation 'tritn'"):
        CompRess(queue, implementation="tritn")
    queue.enqueue(torch.randn(2, 4), torch.randn(2, 3), torch.arange(2))
    with pytest.raises(DistillError, match=r"student has shape \(2, 4\)"):
        CompRess(queue)(torch.randn(2, 4), torch.randn(2, 4), torch.arange(2))


def test_it_describes_itself():
    text = repr(CompRess(AnchorQueue(10, 4, 3), temperature=0.07))
    assert "temperature=0.07" in text
    assert "0 of 10 real" in text
