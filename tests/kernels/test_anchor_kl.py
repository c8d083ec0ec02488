"""The anchor KL against the formula written as loops, in all implementations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from distill.errors import DistillError
from distill.kernels import blocked
from distill.kernels.anchor_kl import IMPLEMENTATIONS, anchor_kl
from distill.kernels.reference import reference_anchor_kl

BOTH = pytest.mark.parametrize("implementation", ["reference", "blocked"])
RAGGED = [(1, 1, 1, 1), (3, 7, 5, 2), (5, 513, 20, 12), (11, 1531, 3, 33), (2, 2500, 8, 8)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 512 anchors, the smallest, so that most cases have several and a ragged one."""
    monkeypatch.setitem(blocked._LOGITS_PER_BLOCK, "cpu", 1)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator))


def operands(B: int, K: int, Dt: int, Ds: int) -> list[Tensor]:
    return [unit(B, Dt, seed=1), unit(B, Ds, seed=2), unit(K, Dt, seed=3), unit(K, Ds, seed=4)]


def loss_and_gradient(
    teacher: Tensor, student: Tensor, *banks: Tensor, upstream: float = 1.0, **options: object
) -> tuple[float, Tensor]:
    student = student.clone().requires_grad_()
    loss = anchor_kl(teacher, student, *banks, **options)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    (loss * upstream).backward()
    assert student.grad is not None
    assert student.grad.dtype == student.dtype
    return loss.item(), student.grad


def by_loops(
    teacher: Tensor,
    student: Tensor,
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    temperatures: tuple[float, float],
    mask: tuple[Tensor, Tensor] | None,
) -> tuple[float, np.ndarray]:
    t, s, a_t, a_s = (
        tensor.double().numpy() for tensor in (teacher, student, teacher_anchors, student_anchors)
    )
    loss, gradient = 0.0, np.zeros_like(s)
    for i in range(len(t)):
        kept = [j for j in range(len(a_t)) if mask is None or mask[0][i] != mask[1][j]]
        if not kept:
            continue
        t_logits = np.array([t[i] @ a_t[j] for j in kept]) / temperatures[0]
        s_logits = np.array([s[i] @ a_s[j] for j in kept]) / temperatures[1]
        p = np.exp(t_logits - t_logits.max())
        q = np.exp(s_logits - s_logits.max())
        p, q = p / p.sum(), q / q.sum()
        for weight, other, j in zip(p, q, kept, strict=True):
            loss += weight * (math.log(weight) - math.log(other)) / len(t)
            gradient[i] += (other - weight) * a_s[j] / (len(t) * temperatures[1])
    return loss, gradient


def assert_close(found: tuple[float, Tensor], loss: float, gradient: np.ndarray, rtol: float):
    assert found[0] == pytest.approx(loss, rel=rtol, abs=rtol)
    scale = np.abs(gradient).max() + 1e-12
    assert np.abs(found[1].numpy() - gradient).max() / scale < max(rtol, 1e-6)


@BOTH
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("temperatures", [(0.1, 0.1), (0.2, 0.5)])
def test_it_is_the_formula(implementation, shape, temperatures):
    tensors = operands(*shape)
    found = loss_and_gradient(
        *tensors,
        teacher_temperature=temperatures[0],
        student_temperature=temperatures[1],
        implementation=implementation,
    )
    assert_close(found, *by_loops(*tensors, temperatures, None), rtol=1e-5)


@BOTH
def test_masked_anchors_leave_both_softmaxes(implementation):
    tensors = operands(6, 1300, 12, 9)
    # Row 2's image owns a whole block and more, rows 4 and 5 are one image, -1 is nobody's.
    anchor_index = torch.randint(-1, 40, (1300,), generator=torch.Generator().manual_seed(0))
    anchor_index[:800] = 7
    mask = (torch.tensor([3, 99, 7, 11, 5, 5]), anchor_index)
    options = {"teacher_temperature": 0.1, "student_temperature": 0.1}
    found = loss_and_gradient(*tensors, self_mask=mask, implementation=implementation, **options)
    assert_close(found, *by_loops(*tensors, (0.1, 0.1), mask), rtol=1e-5)
    unmasked = loss_and_gradient(*tensors, implementation=implementation, **options)
    assert abs(found[0] - unmasked[0]) > 1e-3


@BOTH
def test_a_row_without_anchors_counts_nothing_but_counts(implementation):
    tensors = operands(3, 50, 6, 6)
    mask = (torch.tensor([1, 0, 2]), torch.zeros(50, dtype=torch.int64))
    found = loss_and_gradient(*tensors, self_mask=mask, implementation=implementation)
    assert_close(found, *by_loops(*tensors, (0.04, 0.04), mask), rtol=1e-5)
    assert not found[1][1].any()
    everything = (torch.zeros(3, dtype=torch.int64), mask[1])
    loss, gradient = loss_and_gradient(
        *tensors, self_mask=everything, implementation=implementation
    )
    assert loss == 0
    assert not gradient.any()


@BOTH
def test_minus_one_is_no_image(implementation):
    tensors = operands(2, 30, 6, 6)
    nobody = (torch.tensor([-1, 4]), torch.full((30,), -1))
    masked = loss_and_gradient(*tensors, self_mask=nobody, implementation=implementation)
    assert masked[0] == loss_and_gradient(*tensors, implementation=implementation)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_bank_is_the_same_as_two_equal_ones(dtype):
    teacher, student, bank, _ = operands(4, 1100, 24, 24)
    bank = bank.to(dtype)
    one = loss_and_gradient(teacher, student, bank, bank, implementation="blocked")
    two = loss_and_gradient(teacher, student, bank, bank.clone(), implementation="blocked")
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    torch.testing.assert_close(one[1], two[1], rtol=1e-4, atol=1e-5)


def test_one_bank_is_read_once(monkeypatch):
    read = []

    def similarities(anchors: Tensor, rows: Tensor) -> Tensor:
        read.append((anchors.shape, rows.shape))
        return anchors @ rows.T

    monkeypatch.setattr(blocked, "similarities", similarities)
    teacher, student, bank, _ = operands(4, 96, 24, 24)
    anchor_kl(teacher, student, bank, bank, implementation="blocked")
    assert read == [((96, 24), (8, 24))]


def eager_in_bank_dtype(
    teacher: Tensor, student: Tensor, *banks: Tensor, temperature: float
) -> tuple[float, Tensor]:
    """What autograd gives when the products run in the banks' dtype and the rest in float32."""
    leaf = student.clone().requires_grad_()
    log_p, log_q = (
        ((rows.to(bank.dtype) @ bank.T).float() / temperature).log_softmax(1)
        for rows, bank in zip((teacher, leaf), banks, strict=True)
    )
    loss = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    loss.backward()
    return loss.item(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.04, 0.2, 1.0])
def test_half_banks_err_no_more_than_eager_in_their_dtype(dtype, temperature):
    squares = torch.zeros(2, 2, dtype=torch.float64)  # fused and eager; loss and gradient
    options = {"teacher_temperature": temperature, "student_temperature": temperature}
    for seed in range(6):
        teacher, student = unit(32, 64, seed=seed), unit(32, 48, seed=seed + 10)
        banks = [unit(3000, 64, seed=seed + 20), unit(3000, 48, seed=seed + 30)]
        # Neighbors at cosines near 0.8: large cosines are where half precision hurts.
        banks[0][:64] = F.normalize(teacher.repeat(2, 1) + 0.7 * banks[0][:64])
        banks[1][:64] = F.normalize(student.repeat(2, 1) + 0.7 * banks[1][:64])
        tensors = (teacher, student, *(bank.to(dtype) for bank in banks))
        truth = loss_and_gradient(*tensors, implementation="reference", **options)
        fused = loss_and_gradient(*tensors, implementation="blocked", **options)
        eager = eager_in_bank_dtype(*tensors, temperature=temperature)
        for errors, (loss, gradient) in zip(squares, (fused, eager), strict=True):
            errors[0] += (loss / truth[0] - 1) ** 2
            errors[1] += (gradient - truth[1]).norm() ** 2 / truth[1].norm() ** 2
    assert (squares[0].sqrt() <= 1.1 * squares[1].sqrt() + 1e-5).all(), squares.sqrt()


@BOTH
@pytest.mark.parametrize("length", [1.0, 30.0])
def test_extreme_logits_stay_exact(implementation, length):
    tensors = [tensor.double() * length for tensor in operands(4, 1200, 10, 10)]
    options = {"teacher_temperature": 1e-3, "student_temperature": 1e-3}
    truth = loss_and_gradient(*tensors, implementation="reference", **options)
    found = loss_and_gradient(*tensors, implementation=implementation, **options)
    assert found[0] == pytest.approx(truth[0], rel=1e-6)
    single = [tensor.float() for tensor in tensors]
    found = loss_and_gradient(*single, implementation=implementation, **options)
    assert math.isfinite(found[0])
    assert found[0] == pytest.approx(truth[0], rel=1e-5)
    assert torch.allclose(found[1].double(), truth[1], rtol=1e-3, atol=1e-3 * truth[1].abs().max())


@BOTH
def test_equal_sides_have_no_loss(implementation):
    teacher, _, bank, _ = operands(5, 700, 16, 16)
    loss, gradient = loss_and_gradient(teacher, teacher, bank, bank, implementation=implementation)
    assert loss == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-5


@BOTH
def test_the_upstream_gradient_multiplies(implementation):
    tensors = operands(4, 60, 8, 6)
    once = loss_and_gradient(*tensors, implementation=implementation)[1]
    thrice = loss_and_gradient(*tensors, implementation=implementation, upstream=3.0)[1]
    torch.testing.assert_close(thrice, 3 * once)


@BOTH
def test_half_embeddings_get_half_gradients(implementation):
    tensors = operands(4, 60, 8, 6)
    halves = [tensors[0].half(), tensors[1].bfloat16(), *tensors[2:]]
    found = loss_and_gradient(*halves, implementation=implementation)
    exact = loss_and_gradient(*(t.float() for t in halves), implementation="reference")
    assert found[0] == pytest.approx(exact[0], rel=1e-5)
    torch.testing.assert_close(found[1].float(), exact[1], rtol=1e-2, atol=1e-2)


def test_autocast_does_not_round_float32_operands():
    tensors = operands(4, 60, 8, 6)
    plain = anchor_kl(*tensors)
    for implementation in ("reference", "blocked"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = anchor_kl(*tensors, implementation=implementation)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_gradient_is_skipped_when_nobody_wants_it(monkeypatch):
    def refuse(*_):
        raise AssertionError("the gradient was evaluated")

    monkeypatch.setattr(blocked, "weighted_sums", refuse)
    tensors = operands(4, 1500, 8, 6)
    loss = anchor_kl(*tensors, implementation="blocked")
    assert not loss.requires_grad
    with torch.no_grad():
        tensors[1].requires_grad_()
        assert anchor_kl(*tensors, implementation="blocked").item() == loss.item()
    with pytest.raises(AssertionError):
        anchor_kl(*tensors, implementation="blocked")


def test_inference_mode_leaves_nothing_behind():
    blocked._kept.record = None
    tensors = operands(4, 1500, 8, 6)
    with torch.inference_mode():
        loss = anchor_kl(*tensors, implementation="blocked")
    assert loss_and_gradient(*tensors, implementation="blocked")[0] == loss.item()


def test_nothing_flows_to_teacher_or_banks():
    tensors = [tensor.requires_grad_() for tensor in operands(4, 60, 8, 6)]
    for implementation in ("reference", "blocked"):
        anchor_kl(*tensors, implementation=implementation).backward()
        assert [tensor.grad is None for tensor in tensors] == [True, False, True, True]
        tensors[1].grad = None


def test_operands_are_left_alone_and_may_be_strided():
    tensors = operands(4, 1500, 8, 6)
    strided = [torch.stack([t, t + 1], 2)[:, :, 0] for t in tensors]
    before = [tensor.clone() for tensor in tensors]
    found = loss_and_gradient(*strided, implementation="blocked")
    exact = loss_and_gradient(*tensors, implementation="blocked")
    assert found[0] == pytest.approx(exact[0], rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_the_size_of_blocks_does_not_matter(monkeypatch):
    tensors = operands(4, 2500, 24, 12)
    small = loss_and_gradient(*tensors, implementation="blocked")
    monkeypatch.setitem(blocked._LOGITS_PER_BLOCK, "cpu", 1 << 21)
    large = loss_and_gradient(*tensors, implementation="blocked")
    assert small[0] == pytest.approx(large[0], rel=1e-6)
    torch.testing.assert_close(small[1], large[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_bank_is_copied(dtype):
    teacher, student, bank, _ = operands(2, 16_000, 256, 256)
    bank = bank.to(dtype)
    student.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocations:
        anchor_kl(teacher, student, bank, bank, implementation="blocked").backward()
    assert max(event.cpu_memory_usage for event in allocations.events()) < bank.nbytes / 4


def test_steps_of_different_sizes_share_the_record_without_harm():
    large, small = operands(4, 1500, 8, 6), operands(3, 700, 8, 6)
    alone = [loss_and_gradient(*small, implementation="blocked")]
    loss_and_gradient(*large, implementation="blocked")
    doubles = [tensor.double() for tensor in small]
    loss_and_gradient(*doubles, implementation="blocked")
    alone.append(loss_and_gradient(*small, implementation="blocked"))
    assert alone[0][0] == alone[1][0]
    assert torch.equal(alone[0][1], alone[1][1])


MISTAKES = {
    "rows": ({"teacher": torch.zeros(3, 8)}, r"\(3, 8\) and student \(4, 6\)"),
    "teacher width": ({"teacher_anchors": torch.zeros(9, 7)}, r"\(4, 8\) and .* \(9, 7\)"),
    "student width": ({"student_anchors": torch.zeros(9, 7)}, r"\(4, 6\) and .* \(9, 7\)"),
    "anchors": ({"student_anchors": torch.zeros(8, 6)}, r"\(9, 8\) and .* \(8, 6\)"),
    "no anchors": ({"teacher_anchors": torch.zeros(0, 8)}, "at least one row"),
    "dimensions": ({"student": torch.zeros(4, 6, 1)}, r"student has shape \(4, 6, 1\)"),
    "whole numbers": ({"teacher_anchors": torch.zeros(9, 8, dtype=torch.int8)}, "int8"),
    "two dtypes": ({"teacher_anchors": torch.zeros(9, 8).half()}, "float16 and .* float32"),
    "device": ({"teacher": torch.zeros(4, 8, device="meta")}, "on meta and student on cpu"),
    "cold": ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0"),
    "infinite": ({"student_temperature": math.inf}, "student_temperature is inf"),
    "nan": ({"student_temperature": math.nan}, "positive and finite"),
    "implementation": ({"implementation": "bloked"}, "did you mean 'blocked'"),
    "too few real": ({"num_valid": 0}, "num_valid is 0; it must be from 1 to 9"),
    "too many real": ({"num_valid": 10}, "num_valid is 10; it must be from 1 to 9"),
    "mask shape": ({"self_mask": (torch.arange(3), torch.arange(9))}, "image_index is"),
    "mask dtype": ({"self_mask": (torch.arange(4), torch.zeros(9))}, "anchor_index is"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    changed, message = MISTAKES[mistake]
    names = ("teacher", "student", "teacher_anchors", "student_anchors")
    right = dict(zip(names, operands(4, 9, 8, 6), strict=True))
    with pytest.raises(DistillError, match=message):
        anchor_kl(**{**right, **changed})


def test_auto_is_a_choice():
    assert IMPLEMENTATIONS == ("auto", "blocked", "reference", "triton")
    tensors = operands(4, 9, 8, 6)
    assert anchor_kl(*tensors).item() == anchor_kl(*tensors, implementation="blocked").item()


def test_the_reference_computes_in_float64():
    """Of a small difference between large logits float32 keeps three digits."""
    teacher, anchors = unit(4, 64), unit(40, 64, seed=1)
    student = F.normalize(teacher + 1e-3 * unit(4, 64, seed=2))
    log_p = (teacher.double() @ anchors.double().T / 1e-2).log_softmax(1)
    log_q = (student.double() @ anchors.double().T / 1e-2).log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1).mean().item()
    found = reference_anchor_kl(teacher, student, anchors, anchors, temperatures=(1e-2, 1e-2))
    assert found.item() == pytest.approx(expected, rel=1e-6)
