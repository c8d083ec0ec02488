"""Chooses a plan by shape and device: a measured one, else the one predicted to be fastest.

`anchor_kl` never measures, because that would wait for the device in the middle of a step. It uses
the plan that `tune` found for the same device, dtype, widths and rounded sizes, if there is one.
Plans are kept in a JSON file per device and version of Triton in the cache folder, which is safe to
delete.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.files import atomic_write, cache_folder
from distill.kernels.fused.cost import Device, predicted_seconds
from distill.kernels.fused.plan import (
    CHUNK_BYTES,
    FirstTile,
    Plan,
    Problem,
    Record,
    SecondTile,
    Tiles,
    round_up,
    tiles_for,
)
from distill.parsing import parse_json


@lru_cache(maxsize=256)
def choose(problem: Problem, device: Device) -> Plan:
    """Return the plan with the lowest predicted time, first of equals."""
    return min(candidates(problem, device), key=lambda p: predicted_seconds(p, problem, device))


def candidates(problem: Problem, device: Device) -> list[Plan]:
    """Return every plan worth measuring."""
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
    """Complete a plan with its chunks, and as many shares as fill the multiprocessors once."""
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


FORMAT = 1


def tune(problem: Problem, device: Device, seconds: Callable[[Plan], float]) -> Plan:
    """Measure every candidate, save the fastest and return it.

    Args:
        problem: Sizes to measure at.
        device: With PyTorch's name.
        seconds: Measures a plan; infinity for a plan that cannot run on the device.

    Raises:
        RuntimeError: No plan can run.
    """
    measured = [(seconds(plan), plan) for plan in candidates(problem, device)]
    best, plan = min(measured, key=lambda pair: pair[0])
    if best == float("inf"):
        raise RuntimeError(f"no plan can run on {device.name}")
    path = _path(device.name)
    entries = _read(path) | {_key(problem): {"seconds": best, **asdict(plan)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"format": FORMAT, "plans": entries}, indent=1) + "\n"
    atomic_write(path, content.encode())
    _kept.cache_clear()
    return plan


def tuned_plan(problem: Problem, device: Device) -> Plan | None:
    """Return the plan measured on a device for a problem of this kind, if any.

    Ignores damaged entries and tiles that are no longer candidates.
    """
    entry = _kept(_path(device.name)).get(_key(problem))
    if entry is None:
        return None
    try:
        tiles = (entry["record"], FirstTile(**entry["first"]), SecondTile(**entry["second"]))
    except (KeyError, TypeError):
        return None
    # The number of shares and the chunks depend on the exact sizes.
    found = (p for p in candidates(problem, device) if (p.record, p.first, p.second) == tiles)
    return next(found, None)


def _key(problem: Problem) -> str:
    """Return the key of a problem; sizes are rounded, so that a growing queue keeps its plan."""
    p = problem
    rows, anchors = ((number - 1).bit_length() for number in (p.B, p.n))
    banks = "one bank" if p.one_bank else "two banks"
    mask = "masked" if p.has_mask else "unmasked"
    return f"{p.dtype} {p.Dt} {p.Ds} {banks} {mask} 2^{rows} rows 2^{anchors} anchors"


def _path(device: str) -> Path:
    compiler = importlib.metadata.version("triton")
    name = "".join(c if c.isalnum() else "-" for c in f"{device} Triton {compiler}")
    return cache_folder() / "kernels" / f"{name}.json"


@lru_cache
def _kept(path: Path) -> dict[str, Any]:
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    """Return the plans of a file; none when it is missing, damaged or of another format."""
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    plans = content.get("plans")
    return plans if isinstance(plans, dict) else {}
