"""The fused kernels against the float64 reference, and no worse than the plain formula."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError
from distill.kernels.anchor_kl import anchor_kl
from distill.kernels.fused import plan, scan
from distill.kernels.fused import tuning as choice
from distill.kernels.reference import reference_anchor_kl
from distill.kernels.scan import divergence

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS, ANCHORS, WIDTHS = (1, 3, 37, 256), (1, 63, 500, 4097), (1, 24, 100, 512)
FACTORS = {
    "B": ROWS,
    "K": ANCHORS,
    "Dt": WIDTHS,
    "Ds": WIDTHS,
    "dtype": tuple(DTYPES),
    "banks": ("one", "two"),
    "record": ("both", "teacher", "chunks"),
    "masked": (False, True),
    "temperature": (0.04, 1e-3),
}


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch):
    """Fresh memory holds NaN: whatever a kernel reads before it writes shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        buffer = empty(*args, **kwargs)
        return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

    monkeypatch.setattr(torch, "empty", poisoned)


def pairwise(factors: dict[str, tuple]) -> list[dict[str, object]]:
    """Choose cases, greedily, in which every pair of values of two factors occurs."""
    names = list(factors)
    cases = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())
    ]
    pairs = list(itertools.combinations(names, 2))
    covers = [{(a, b, case[a], case[b]) for a, b in pairs} for case in cases]
    missing, chosen = set().union(*covers), []
    candidates = list(range(0, len(cases), 7))  # a seventh of all is enough to choose from
    while missing:
        best = max(candidates, key=lambda index: len(covers[index] & missing))
        if not covers[best] & missing:
            candidates = list(range(len(cases)))
            continue
        missing -= covers[best]
        chosen.append(cases[best])
    return chosen


def sensible(case: dict[str, object]) -> dict[str, object]:
    """Adapt a case to what exists: one bank has one width, and float32 goes in chunks."""
    one = {"Ds": case["Dt"]} if case["banks"] == "one" else {}
    record = "chunks" if case["dtype"] == "fp32" else case["record"]
    return {**case, **one, "record": record}


def operands(case: dict[str, object], device: torch.device) -> list[Tensor]:
    """Unit rows that resemble some of the anchors, in the banks' dtype."""
    generator = torch.Generator().manual_seed(1)
    dtype = DTYPES[case["dtype"]]
    tensors = []
    for width in (case["Dt"], case["Ds"]):
        anchors = torch.randn(case["K"], width, generator=generator)
        rows = anchors[torch.randint(case["K"], (case["B"],), generator=generator)]
        rows = rows + torch.randn(case["B"], width, generator=generator)
        tensors.append([F.normalize(x).to(dtype).to(device) for x in (rows, anchors)])
    (teacher, teacher_bank), (student, student_bank) = tensors
    if case["banks"] == "one":
        student_bank = teacher_bank
    return [teacher, student.float(), teacher_bank, student_bank]


def mask_of(case: dict[str, object], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Every image has about three anchors; the first row has all that there are of image 0."""
    if not case["masked"]:
        return None
    images = torch.arange(case["B"])
    anchors = torch.arange(case["K"]) % (max(1, case["K"] // 3) + 1) - 1
    return images.to(device), anchors.to(device)


def plain(
    teacher: Tensor, student: Tensor, banks: tuple[Tensor, Tensor], temperatures, mask
) -> Tensor:
    """The loss as one writes it, in the banks' dtype from end to end."""
    dtype = banks[0].dtype
    logits = [
        (rows.to(dtype) @ bank.T) / temperature
        for rows, bank, temperature in zip((teacher, student), banks, temperatures, strict=True)
    ]
    if mask is not None:
        hidden = mask[0][:, None] == mask[1]
        hidden &= ~hidden.all(1, keepdim=True)
        lowest = torch.finfo(dtype).min
        logits = [x.masked_fill(hidden, lowest) for x in logits]
    p = logits[0].softmax(1)
    return F.kl_div(logits[1].log_softmax(1), p, reduction="batchmean").float()


def loss_and_gradient(function, student: Tensor) -> tuple[float, Tensor]:
    student = student.detach().clone().requires_grad_()
    loss = function(student)
    loss.backward()
    return loss.item(), student.grad.double()


def fused(tensors, temperatures, mask, chosen):
    """Loss and gradient by the fused kernels with a plan, as `anchor_kl` puts them together."""
    scanned = scan.FusedScan(*tensors, temperatures=temperatures, self_mask=mask, plan=chosen)
    gradient = scanned.gradient(scanned.statistics[:2])
    share = 1 / (len(tensors[1]) * temperatures[1])
    return divergence(scanned.statistics).item(), gradient.double() * share


def finite(error: float) -> float:
    """Take a result that is not a number for infinitely wrong."""
    return error if math.isfinite(error) else math.inf


def check(case: dict[str, object], device: torch.device, plan_with) -> None:
    tensors, mask = operands(case, device), mask_of(case, device)
    temperatures = (case["temperature"], 1.5 * case["temperature"])
    problem = plan.Problem(
        case["B"],
        case["K"],
        case["Dt"],
        case["Ds"],
        case["dtype"],
        case["banks"] == "one",
        case["masked"],
    )
    exact = loss_and_gradient(
        lambda s: reference_anchor_kl(
            tensors[0], s, *tensors[2:], temperatures=temperatures, self_mask=mask
        ),
        tensors[1],
    )
    eager = loss_and_gradient(
        lambda s: plain(tensors[0], s, tensors[2:], temperatures, mask), tensors[1]
    )
    found = fused(tensors, temperatures, mask, plan_with(problem, case["record"]))
    # A hair: half a unit in the last place of the 16-bit weights, of the logits in float32.
    of_logits = 2**-24 / case["temperature"]
    hair = {"fp32": max(1e-6, of_logits), "fp16": 2**-11, "bf16": 2**-8}[case["dtype"]]
    scale = 1 / case["temperature"]  # logits are that large, and so is the loss's cancellation
    error = abs(found[0] - exact[0])
    assert error <= finite(abs(eager[0] - exact[0])) + hair * max(abs(exact[0]), 3e-3 * scale)
    error = (found[1] - exact[1]).abs().max().item()
    size = exact[1].abs().max().item()
    of_eager = finite((eager[1] - exact[1]).abs().max().item())
    assert error <= of_eager + hair * max(size, scale / case["B"])


CASES = [sensible(case) for case in pairwise(FACTORS)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_pairs_of_shapes_dtypes_and_modes(case, device, plan_with):
    check(case, device, plan_with)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", ROWS)
@pytest.mark.parametrize("K", ANCHORS)
def test_all_shapes(B, K, dtype, device, plan_with):
    rest = {name: FACTORS[name] for name in ("Dt", "Ds", "banks", "record", "masked")}
    seen = set()
    for values in itertools.product(*rest.values()):
        case = sensible({"B": B, "K": K, "dtype": dtype, **dict(zip(rest, values, strict=True))})
        case["temperature"] = 0.04
        if tuple(case.values()) not in seen:
            seen.add(tuple(case.values()))
            check(case, device, plan_with)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_launchers_own_plan(dtype, device):
    """Through the dispatcher, with a shipped tile and an upstream gradient that is not 1."""
    case = {"B": 5, "K": 300, "Dt": 72, "Ds": 40, "dtype": dtype, "banks": "two", "masked": True}
    tensors, mask = operands(case, device), mask_of(case, device)

    def run(implementation: str) -> tuple[float, Tensor]:
        return loss_and_gradient(
            lambda s: (
                3
                * anchor_kl(
                    tensors[0], s, *tensors[2:], self_mask=mask, implementation=implementation
                )
            ),
            tensors[1],
        )

    found, exact = run("triton"), run("reference")
    tolerance = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}[dtype]
    assert found[0] == pytest.approx(exact[0], rel=tolerance)
    torch.testing.assert_close(
        found[1], exact[1], rtol=0, atol=tolerance * exact[1].abs().max().item()
    )


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.fixed_dictionaries(
        {
            "B": st.integers(1, 70),
            "K": st.integers(1, 600),
            "Dt": st.integers(1, 70),
            "Ds": st.integers(1, 70),
            "dtype": st.sampled_from(sorted(DTYPES)),
            "banks": st.sampled_from(["one", "two"]),
            "record": st.sampled_from(["both", "teacher"]),
            "masked": st.booleans(),
            "temperature": st.sampled_from([1e-3, 0.04, 1.0]),
        }
    )
)
def test_any_shape(device, plan_with, case):
    check(sensible(case), device, plan_with)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_valid", [1, 257, 499])
def test_only_real_anchors_count(num_valid, dtype, device):
    case = {"B": 9, "K": 500, "Dt": 24, "Ds": 40, "dtype": dtype, "banks": "two", "masked": True}
    tensors, mask = operands(case, device), mask_of(case, device)
    shown = [*tensors[:2], *(bank[:num_valid] for bank in tensors[2:])]
    exact = anchor_kl(*shown, self_mask=(mask[0], mask[1][:num_valid]), implementation="reference")
    for bank in tensors[2:]:
        bank[num_valid:] = float("nan")
    loss = anchor_kl(*tensors, self_mask=mask, num_valid=num_valid, implementation="triton")
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-4)


def test_chunks_add_up(device, monkeypatch):
    """float32 with many chunks: memory stays, results too."""
    case = {"B": 20, "K": 1000, "Dt": 24, "Ds": 40, "dtype": "fp32", "banks": "two", "masked": True}
    tensors, mask = operands(case, device), mask_of(case, device)
    monkeypatch.setattr(choice, "CHUNK_BYTES", 2 * 4 * 64 * 128)
    choice.choose.cache_clear()
    exact = loss_and_gradient(
        lambda s: anchor_kl(
            tensors[0], s, *tensors[2:], self_mask=mask, implementation="reference"
        ),
        tensors[1],
    )
    found = loss_and_gradient(
        lambda s: anchor_kl(tensors[0], s, *tensors[2:], self_mask=mask, implementation="triton"),
        tensors[1],
    )
    chosen = scan.plan_for(plan.Problem(20, 1000, 24, 40, "fp32", has_mask=True), device)
    choice.choose.cache_clear()
    assert chosen.chunk == 128
    assert found[0] == pytest.approx(exact[0], rel=1e-6)
    torch.testing.assert_close(found[1], exact[1], rtol=1e-5, atol=1e-6)


def test_a_row_without_anchors_counts_nothing(device):
    case = {"B": 3, "K": 300, "Dt": 24, "Ds": 40, "dtype": "bf16", "banks": "two"}
    tensors = operands(case, device)
    mask = (torch.tensor([7, 1, 2], device=device), torch.full((300,), 7, device=device))
    loss, gradient = loss_and_gradient(
        lambda s: anchor_kl(tensors[0], s, *tensors[2:], self_mask=mask, implementation="triton"),
        tensors[1],
    )
    exact = anchor_kl(*tensors, self_mask=mask, implementation="reference")
    assert loss == pytest.approx(exact.item(), rel=1e-4)
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    assert gradient[1:].abs().min() > 0


def test_no_rounding_gives_a_row_without_anchors_a_gradient(device):
    """The log-sum-exp of hidden anchors is huge: a unit in its last place is, too."""
    case = {"B": 3, "K": 300, "Dt": 24, "Ds": 40, "dtype": "bf16", "banks": "two"}
    mask = (torch.tensor([7, 1, 2], device=device), torch.full((300,), 7, device=device))
    for record in ("both", "teacher"):
        scanned = scan.FusedScan(
            *operands(case, device),
            temperatures=(0.04, 0.04),
            self_mask=mask,
            plan=next(
                each
                for each in choice.candidates(
                    plan.Problem(3, 300, 24, 40, "bf16", has_mask=True),
                    scan.device_on_paper(device),
                )
                if each.record == record
            ),
        )
        nowhere = torch.full((1,), -math.inf, dtype=torch.float64, device=device)
        gradient = scanned.gradient(torch.nextafter(scanned.statistics[:2], nowhere))
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert gradient[1:].abs().min() > 0


def test_large_logits_keep_probabilities_that_sum_to_one(device):
    """Equal anchors have equal probabilities, whatever the temperatures: no gradient."""
    anchors = F.normalize(torch.ones(700, 24, device=device))
    rows = anchors[:9].clone()
    scanned = scan.FusedScan(rows, rows, anchors, anchors.clone(), temperatures=(1e-3, 1.7e-3))
    assert scanned.gradient(scanned.statistics[:2]).abs().max() < 1e-6


def test_small_probabilities_survive_float16(device, plan_with):
    """Weights of a third of 1 / K, all alike: below float16's normal numbers they round alike."""
    K = 27_890  # a third of 1 / K is 200.5 of float16's smallest numbers
    teacher_bank = torch.tensor([1.0, 0.0], device=device).half().expand(K, 2).contiguous()
    student_bank = torch.eye(2, device=device).half().repeat(K // 2, 1)
    teacher = torch.tensor([[1.0, 0.0]], device=device)
    student = torch.tensor([[0.5, 0.5 - 0.1 * math.log(2)]], device=device)  # q is 2 to 1
    tensors = [teacher, student, teacher_bank, student_bank]
    chosen = plan_with(plan.Problem(1, K, 2, 2, "fp16"), "both")
    exact = loss_and_gradient(
        lambda s: reference_anchor_kl(teacher, s, *tensors[2:], temperatures=(0.1, 0.1)),
        student.half().float(),
    )
    gradient = fused(tensors, (0.1, 0.1), None, chosen)[1]
    torch.testing.assert_close(gradient, exact[1], rtol=1e-3, atol=0)


def test_tf32_only_if_pytorch_allows_it():
    assert scan._precision() == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert scan._precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_results_are_the_same_bits_every_time(device):
    case = {"B": 37, "K": 700, "Dt": 24, "Ds": 40, "dtype": "bf16", "banks": "two"}
    tensors = operands(case, device)
    once, again = (fused(tensors, (0.04, 0.04), None, None) for _ in range(2))
    assert once[0] == again[0]
    assert torch.equal(once[1], again[1])


def test_the_loss_alone_records_one_side(device, monkeypatch):
    case = {"B": 9, "K": 300, "Dt": 24, "Ds": 40, "dtype": "bf16", "banks": "two"}
    tensors = operands(case, device)
    exact = anchor_kl(*tensors, implementation="triton")
    scanned = scan.FusedScan(*tensors, temperatures=(0.04, 0.04), with_gradient=False)
    assert divergence(scanned.statistics).item() == exact.item()
    assert len(scanned._chunk.record) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_float32_matrix_of_rows_and_anchors(dtype, device, monkeypatch):
    case = {"B": 64, "K": 2000, "Dt": 24, "Ds": 40, "dtype": dtype, "banks": "two"}
    tensors = operands(case, device)
    monkeypatch.setattr(choice, "CHUNK_BYTES", 2 * 4 * 64 * 512)
    choice.choose.cache_clear()
    shapes, empty = [], torch.empty

    def noted(*args, **kwargs):
        buffer = empty(*args, **kwargs)
        if buffer.dtype == torch.float32:
            shapes.append(buffer.shape)
        return buffer

    monkeypatch.setattr(torch, "empty", noted)
    fused(tensors, (0.04, 0.04), None, None)
    choice.choose.cache_clear()
    assert shapes
    assert not [shape for shape in shapes if shape[-2] >= 64 and shape[-1] >= 2000]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_waits_for_the_device(dtype):
    case = {"B": 64, "K": 2000, "Dt": 64, "Ds": 64, "dtype": dtype, "banks": "two", "masked": True}
    device = torch.device("cuda")
    tensors, mask = operands(case, device), mask_of(case, device)
    student = tensors[1].requires_grad_()
    for mode in ("default", "error"):  # the first one compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            anchor_kl(tensors[0], student, *tensors[2:], self_mask=mask).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_float64_banks_and_missing_triton_are_told(device, monkeypatch):
    tensors = [torch.ones(2, 3, dtype=torch.float64, device=device)] * 4
    with pytest.raises(DistillError, match="float64 and it supports float32, bfloat16 and float16"):
        anchor_kl(*tensors, implementation="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DistillError, match="triton is not installed; use auto"):
        anchor_kl(*[x.float() for x in tensors], implementation="triton")


def test_a_cpu_without_the_interpreter_is_told(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DistillError, match="operands are on cpu and it needs a CUDA device"):
        anchor_kl(*[torch.ones(2, 3)] * 4, implementation="triton")
