"""The benchmark for GPUs runs in Triton's interpreter, and says so when a kernel is wrong.

Triton reads TRITON_INTERPRET when it is imported, so every run has a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
FUSED_ONE_PER_CENT_TOO_LARGE = """
import gpu_checks
right = gpu_checks.kernel_loss
def kernel_loss(name):
    return lambda *tensors, **mask: 1.01 * right(name)(*tensors, **mask)
gpu_checks.kernel_loss = kernel_loss
"""
SOME_PLANS_FAIL = """
import gpu_tuning
right = gpu_tuning.by_plan
def by_plan(plan, inputs):
    if plan.record == "teacher":
        from triton.runtime.errors import OutOfResources
        raise OutOfResources(300, 200, "shared memory")
    loss, gradient = right(plan, inputs)
    return loss, gradient * (1.5 if plan.second.block_c == 256 else 1)
gpu_tuning.by_plan = by_plan
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the tiny benchmark after `change`; status, JSON, what it said."""

    def start(*arguments: str, change: str = "", gpu: bool = False) -> tuple[int, dict, str]:
        program = f"{change}\nimport sys, bench_gpu\nsys.exit(bench_gpu.main(sys.argv[1:]))"
        search = [str(TOOLS), *(path for path in sys.path if path)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(search),
            "DISTILL_CACHE": str(tmp_path / "cache"),
        }
        environment.pop("TRITON_INTERPRET", None)
        if not gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        file = tmp_path / "found.json"
        command = [sys.executable, "-c", program, "--tiny", "--json", str(file), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert file.exists(), done.stderr
        return done.returncode, json.loads(file.read_text()), done.stdout + done.stderr

    return start


@pytest.mark.slow
def test_tiny_mode_checks_times_and_writes(run):
    status, found, said = run()
    assert status == 0, said
    assert [row["dtype"] for row in found["checks"]] == ["bf16"] * 2 + ["fp16"] * 2 + ["fp32"] * 2
    assert all(row["passed"] for row in found["checks"])
    timed = [(row["contender"], row["gradient"]) for row in found["rows"]]
    kinds = [(name, kind) for name in ("fused", "plain", "compiled") for kind in (False, True)]
    assert timed == kinds * 3, found["notes"]
    for row in found["rows"]:
        assert row["share_of_roofline"] > 0
        assert (row["measured_over_predicted"] is None) == (
            (row["contender"], row["gradient"]) != ("fused", True)
        )
    assert found["machine"]["triton"]
    assert "plan: record" in said


def test_a_wrong_kernel_is_named_and_fails(run):
    arguments = ("--dtypes", "fp32", "--one-bank")
    status, found, said = run(*arguments, change=FUSED_ONE_PER_CENT_TOO_LARGE)
    assert status == 1
    assert found["rows"] == []
    assert "Ds 64 fp32, one bank: all anchors, K 300: loss error 1.0e-02" in said
    assert len(found["failures"]) == 2


@pytest.mark.slow
def test_tuning_passes_over_what_cannot_run_or_is_wrong(run):
    status, found, said = run("--tune", "--dtypes", "bf16", change=SOME_PLANS_FAIL)
    assert status == 1, said
    kept = [row for row in found["tuning"] if row["kept"]]
    assert [row["masked"] for row in kept] == [False, True]
    for row in found["tuning"]:
        unable, wrong = row["plan"]["record"] == "teacher", row["plan"]["second"]["block_c"] == 256
        assert (row["ms"] is None) == (unable or wrong)
        assert row["wrong"] == (wrong and not unable)
        if unable:
            assert "OutOfResources" in row["unavailable_reason"]
    assert said.count("(kept)") == 2
    plans = [row["plan"] for row in found["rows"] if row["contender"] == "fused"]
    assert plans == [kept[0]["plan"]] * 2
    assert len(found["rows"]) == 6


@pytest.mark.gpu
def test_on_a_gpu_it_measures_memory_and_keeps_plans(run, tmp_path):
    status, found, said = run("--tune", gpu=True)
    assert status == 0, said
    assert all(row["peak_bytes"] > 0 for row in found["rows"])
    assert found["machine"]["cuda"]
    assert list((tmp_path / "cache" / "kernels").iterdir())


def test_without_a_gpu_it_says_what_it_needs(tool, capsys, monkeypatch):
    bench = tool("bench_gpu")
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    said = capsys.readouterr()
    assert said.err == "bench_gpu needs a CUDA GPU, PyTorch sees none; try --tiny\n"
    assert said.out == ""


def test_the_published_sizes(tool):
    bench = tool("bench_gpu")
    made = bench.problems(bench.parse(["--published"]))
    assert {(p.Dt, p.Ds) for p in made} == {(2048, 512), (2048, 4096), (8192, 512), (8192, 4096)}
    assert len(made) == 12
    made = bench.problems(bench.parse(["--published", "--one-bank", "--dtypes", "bf16"]))
    assert [(p.Dt, p.Ds, p.one_bank) for p in made] == [(2048, 2048, True), (8192, 8192, True)]
