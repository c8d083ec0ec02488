"""The queue against a deque, and what a user may do wrong with it."""

import io
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.anchors import AnchorQueue

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def batch(size: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that tell their image by themselves, not unit."""
    generator = torch.Generator().manual_seed(first)
    teacher, student = (torch.randn(size, width, generator=generator) for width in (3, 2))
    return teacher * 5, student * 5, torch.arange(first, first + size)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 21), max_size=8))
def test_it_keeps_the_last_rows_like_a_deque(size, batches):
    queue, model, total = AnchorQueue(size, 3, 2), deque(maxlen=size), 0
    for count in batches:
        teacher, student, index = batch(count, total)
        queue.enqueue(teacher, student, index)
        model.extend(zip(F.normalize(teacher), F.normalize(student), index.tolist(), strict=True))
        total += count
        anchors = queue.anchors()
        assert queue.pointer == total % size
        assert queue.num_valid == len(anchors) == len(model)
        # Row r holds the newest image whose number is r modulo the size.
        for teacher_row, student_row, image in model:
            row = image % size
            assert anchors.image_index[row] == image
            assert torch.equal(anchors.teacher[row], teacher_row)
            assert torch.equal(anchors.student[row], student_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_normalized_then_rounded(dtype):
    queue = AnchorQueue(8, 3, 2, dtype=dtype)
    teacher, student, index = batch(5)
    queue.enqueue(teacher.bfloat16(), student, index)
    wide = torch.promote_types(torch.float32, dtype)
    expected = F.normalize(teacher.bfloat16().to(wide)).to(dtype)
    assert torch.equal(queue.anchors().teacher, expected)
    assert queue.anchors().student.dtype == dtype


def test_anchors_are_views_of_the_real_rows():
    queue = AnchorQueue(8, 3, 2)
    assert len(queue.anchors()) == 0
    queue.enqueue(*batch(5))
    anchors, again = queue.anchors(), queue.anchors()
    assert anchors.teacher.shape == (5, 3)
    assert anchors.student.shape == (5, 2)
    assert anchors.teacher.data_ptr() == again.teacher.data_ptr()
    assert anchors.teacher.untyped_storage().nbytes() == 8 * 3 * 4
    queue.enqueue(*batch(5, 5))
    assert anchors.image_index.tolist() == [8, 9, 2, 3, 4]
    assert len(queue.anchors()) == 8


def test_one_bank_serves_both_sides():
    queue = AnchorQueue(4, 3)
    teacher, student, index = batch(2)
    queue.enqueue(teacher, student, index)
    queue.enqueue(teacher, None, index)
    anchors = queue.anchors()
    assert queue.one_bank
    assert anchors.student is anchors.teacher
    assert queue.num_bytes == 4 * (3 * 4 + 8)


def test_gradients_do_not_enter():
    queue = AnchorQueue(4, 3, 2)
    teacher, student, index = batch(2)
    queue.enqueue(teacher, student.requires_grad_(), index)
    assert not queue.anchors().student.requires_grad


def test_a_random_queue_is_full_of_nobodys_rows():
    queue = AnchorQueue(5000, 48, 12, init="random", seed=3)
    anchors = queue.anchors()
    assert len(anchors) == queue.num_valid == 5000
    assert (anchors.image_index == -1).all()
    for rows, width in ((anchors.teacher, 48), (anchors.student, 12)):
        bound = math.sqrt(3 / width)
        assert 0.99 * bound < rows.max() <= bound
        assert -bound <= rows.min() < -0.99 * bound
        assert rows.square().sum(1).mean() == pytest.approx(1, abs=0.02)
    same = AnchorQueue(5000, 48, 12, init="random", seed=3, dtype=torch.bfloat16).anchors()
    assert torch.equal(same.teacher, anchors.teacher.bfloat16())
    other = AnchorQueue(5000, 48, 12, init="random", seed=4).anchors()
    assert not torch.equal(other.teacher, anchors.teacher)


@pytest.mark.parametrize("student_dim", [2, None])
def test_memory_is_known_beforehand(student_dim):
    for dtype in DTYPES:
        queue = AnchorQueue(7, 3, student_dim, dtype=dtype)
        assert queue.num_bytes == AnchorQueue.required_bytes(7, 3, student_dim, dtype)
    assert AnchorQueue.required_bytes(128_000, 8192, None, torch.float32) == 128_000 * 32_776


@pytest.mark.parametrize("student_dim", [2, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_survives_a_checkpoint(student_dim, dtype):
    queue = AnchorQueue(8, 3, student_dim, dtype=dtype)
    queue.enqueue(*batch(5))
    queue.enqueue(*batch(5, 5))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    restored = AnchorQueue(8, 3, student_dim, dtype=dtype)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for both in (queue, restored):
        both.enqueue(*batch(3, 10))
    assert (restored.pointer, restored.num_valid) == (queue.pointer, queue.num_valid) == (5, 8)
    for name in ("teacher", "student", "image_index"):
        assert torch.equal(getattr(restored.anchors(), name), getattr(queue.anchors(), name))


OTHERS = {
    "size": lambda: AnchorQueue(9, 3, 2),
    "teacher width": lambda: AnchorQueue(8, 4, 2),
    "student width": lambda: AnchorQueue(8, 3, 3),
    "one bank": lambda: AnchorQueue(8, 3),
    "dtype": lambda: AnchorQueue(8, 3, 2, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_queues_state_is_refused_whole(other):
    queue = AnchorQueue(8, 3, 2)
    queue.enqueue(*batch(5))
    before = queue.anchors().teacher.clone()
    stranger = OTHERS[other]()
    with pytest.raises(DistillError, match=r"this one 8 x 3 float32 and 8 x 2 float32"):
        queue.load_state_dict(stranger.state_dict())
    assert torch.equal(queue.anchors().teacher, before)
    assert queue.num_valid == 5


def test_a_damaged_state_is_refused():
    queue = AnchorQueue(8, 3, 2)
    state = queue.state_dict()
    with pytest.raises(DistillError, match="must hold"):
        queue.load_state_dict({name: state[name] for name in state if name != "pointer"})
    with pytest.raises(DistillError, match="pointer 8"):
        queue.load_state_dict({**state, "pointer": 8})


MISTAKES = {
    "size": (lambda: AnchorQueue(0, 3), "size is 0"),
    "dim": (lambda: AnchorQueue(4, 0), "dim is 0"),
    "student_dim": (lambda: AnchorQueue(4, 3, 0), "student_dim is 0"),
    "dtype": (lambda: AnchorQueue(4, 3, dtype=torch.int8), "dtype is torch.int8"),
    "init": (lambda: AnchorQueue(4, 3, init="randon"), "did you mean 'random'"),
    "bytes": (lambda: AnchorQueue.required_bytes(4, 3, -1, torch.float32), "student_dim is -1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(DistillError, match=message):
        make()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_index": torch.arange(3)}, r"teacher has shape \(2, 3\); 3 image indices"),
        ({"image_index": torch.zeros(2)}, "must be int64"),
        ({"image_index": torch.zeros(2, 1, dtype=torch.int64)}, "one entry per row"),
        ({"teacher": torch.zeros(2, 4)}, r"want \(2, 3\)"),
        ({"student": None}, "student has shape None"),
        ({"student": torch.zeros(1, 2)}, r"student has shape \(1, 2\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_whole(changed, message):
    queue = AnchorQueue(4, 3, 2)
    right = dict(zip(("teacher", "student", "image_index"), batch(2), strict=True))
    with pytest.raises(DistillError, match=message):
        queue.enqueue(**{**right, **changed})
    assert (queue.pointer, queue.num_valid) == (0, 0)


def test_it_describes_itself():
    assert repr(AnchorQueue(4, 3, 2)).startswith(
        "AnchorQueue(4 x 3 float32 and 4 x 2 float32, 0 of 4 real"
    )
