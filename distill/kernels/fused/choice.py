"""Chooses a plan by shape and device: the one that the cost model predicts to be the fastest."""

from __future__ import annotations

from functools import lru_cache

from distill.kernels.fused.configurations import Tiles, tiles_for
from distill.kernels.fused.cost import predicted_seconds
from distill.kernels.fused.devices import Device
from distill.kernels.fused.plan import (
    CHUNK_BYTES,
    FirstTile,
    Plan,
    Problem,
    Record,
    SecondTile,
    round_up,
)


@lru_cache(maxsize=256)
def choose(problem: Problem, device: Device) -> Plan:
    """Return the plan of the lowest predicted time; among equals the first."""
    return min(candidates(problem, device), key=lambda p: predicted_seconds(p, problem, device))


def candidates(problem: Problem, device: Device) -> list[Plan]:
    """Return every plan that is worth a measurement."""
    tiles = tiles_for(device.capability)
    return [
        make_plan(problem, device, record, first, second)
        for record, seconds in _second_tiles(problem, tiles).items()
        for first in _first_tiles(problem, tiles)
        for second in seconds
        if first.block_s % second.block_n == 0
    ]


def make_plan(
    problem: Problem, device: Device, record: Record, first: FirstTile, second: SecondTile
) -> Plan:
    """Complete a plan: the chunks, and as many shares as fill the multiprocessors once."""
    rows = round_up(problem.B, max(first.block_b, second.block_b))
    chunk = problem.n
    if record == "chunks":
        fitting = CHUNK_BYTES // (2 * 4 * rows) // first.block_k * first.block_k
        chunk = min(problem.n, max(first.block_k, fitting))
    sides = 2 if record == "chunks" else 1
    columns = round_up(problem.Ds, second.block_c) // second.block_c
    num_tiles = -(-chunk // second.block_n)
    wanted = max(1, device.num_sms // (rows // second.block_b * columns * sides))
    per_share = -(-num_tiles // min(wanted, num_tiles))
    return Plan(record, first, second, -(-num_tiles // per_share), chunk)


def _first_tiles(problem: Problem, tiles: Tiles) -> tuple[FirstTile, ...]:
    if problem.dtype == "fp32":
        return tiles.first_float_one_bank if problem.one_bank else tiles.first_float
    return tiles.first_one_bank if problem.one_bank else tiles.first


def _second_tiles(problem: Problem, tiles: Tiles) -> dict[Record, tuple[SecondTile, ...]]:
    if problem.dtype == "fp32":
        return {"chunks": tiles.second_float}
    narrow = tuple(tile for tile in tiles.second_narrow if tile.block_c >= problem.Ds)
    return {"both": tiles.second, "teacher": narrow}
