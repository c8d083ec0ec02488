"""Plans: complete, fitting, and chosen by the cost that is predicted."""

import pytest

from distill.kernels.fused.cost import DEVICES, find_device, floor_seconds, predicted_seconds
from distill.kernels.fused.plan import CHUNK_BYTES, TILES, Problem, round_up, tiles_for
from distill.kernels.fused.tuning import candidates, choose, make_plan

EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))


@EVERY_DEVICE
@pytest.mark.parametrize("Ds", [512, 4096])
def test_a_wide_teacher_costs_at_most_a_fifth_over_the_floor(device, Ds):
    problem = Problem(256, 128_000, 8192, Ds, "bf16")
    seconds = predicted_seconds(choose(problem, device), problem, device)
    assert seconds <= 1.2 * floor_seconds(problem, device)


@EVERY_DEVICE
def test_the_choice_is_the_cheapest(device):
    problem = Problem(256, 128_000, 2048, 128, "bf16")
    every = candidates(problem, device)
    chosen = choose(problem, device)
    assert {plan.record for plan in every} == {"both", "teacher"}
    assert predicted_seconds(chosen, problem, device) == min(
        predicted_seconds(plan, problem, device) for plan in every
    )


def test_the_record_follows_the_shape():
    """A narrow student's logits are cheaper to multiply again than to write and read."""
    h100 = DEVICES["H100"]
    assert choose(Problem(256, 128_000, 2048, 64, "bf16"), h100).record == "teacher"
    assert choose(Problem(256, 128_000, 2048, 512, "bf16"), h100).record == "both"
    assert choose(Problem(256, 128_000, 2048, 512, "fp32"), h100).record == "chunks"


@EVERY_DEVICE
@pytest.mark.parametrize("K", [1, 500, 128_000])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tiles_of_both_passes_fit_each_other(device, K, dtype):
    problem = Problem(256, K, 2048, 100, dtype)
    for plan in candidates(problem, device):
        assert plan.rows % plan.first.block_b == plan.rows % plan.second.block_b == 0
        assert plan.first.block_s % plan.second.block_n == 0
        assert plan.first.block_k % plan.first.block_s == 0
        assert 1 <= plan.num_shares <= -(-plan.chunk // plan.second.block_n)


def test_two_passes_fill_the_multiprocessors():
    for name, device in DEVICES.items():
        problem = Problem(256, 128_000, 2048, 512, "bf16")
        plan = choose(problem, device)
        R, N, C = plan.padded(problem, problem.n)
        first = R // plan.first.block_b * (N // plan.first.block_k)
        second = R // plan.second.block_b * (C // plan.second.block_c) * plan.num_shares
        assert first >= device.num_sms, name
        assert 0.9 * device.num_sms <= second <= device.num_sms, name


def test_float32_chunks_stay_within_their_bytes():
    problem = Problem(256, 128_000, 2048, 512, "fp32")
    plan = choose(problem, DEVICES["H100"])
    rows = round_up(256, plan.rows)
    assert 2 * 4 * rows * round_up(plan.chunk, plan.first.block_k) <= CHUNK_BYTES
    assert plan.chunk % plan.first.block_k == 0


def test_a_chunk_is_no_longer_than_the_bank():
    device = DEVICES["H100"]
    problem = Problem(4, 100, 24, 24, "fp32")
    tiles = TILES[90]
    plan = make_plan(problem, device, "chunks", tiles.first_float[0], tiles.second_float[0])
    assert plan.chunk == 100


def test_devices_are_known_by_name_or_by_generation():
    assert find_device("NVIDIA H200", (9, 0)).name == "H200"
    assert find_device("NVIDIA A100-SXM4-80GB", (8, 0)).name == "A100"
    assert find_device("NVIDIA GeForce RTX 4090", (8, 9)).name == "A100"
    assert find_device("NVIDIA GH200 480GB", (9, 0)).name == "H100"
    assert tiles_for((8, 9)) is TILES[80]
    assert tiles_for((10, 3)) is TILES[100]
    assert tiles_for((12, 0)) is TILES[80]
