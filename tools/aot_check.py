"""Compile every shipped configuration of the fused kernels for GPUs that need not be there.

Triton's own ptxas and disassembler show what a device would run. The check fails on register spills
or other local memory, on more shared memory than the target has, and, for bf16 and fp16, on a
program without the target's tensor-core instruction (true float32 has none).

    python tools/aot_check.py                     # every configuration, in its largest form
    python tools/aot_check.py --forms all         # also unmasked, one side recorded, odd widths
    python tools/aot_check.py --forms quick       # one configuration of each pass per target
    python tools/aot_check.py --targets 90 --json FILE

Columns: registers per thread, shared memory in KiB, bytes of stack (spills), tensor-core (or, for
fp32, FFMA) instructions in the program, and the warps that fit on a multiprocessor at a time (of
64), by registers, shared memory and threads. Limits: compiled with addresses and widths that are
multiples of 16, as the published sizes are; odd widths take more instructions for the same tiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # both are read when Triton is imported
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.9 does, without its warning

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distill.kernels.fused.cost import MERGED_PARTS, MERGED_ROWS
from distill.kernels.fused.kernels import first_pass, merge, second_pass
from distill.kernels.fused.plan import TILES, Dtype, FirstTile, SecondTile

# Bytes of shared memory a program may have and a multiprocessor has, by target.
SHARED = {80: (163 << 10, 164 << 10), 90: (227 << 10, 228 << 10), 100: (227 << 10, 228 << 10)}
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
ALIGNED = ("teacher_width", "student_width", "width", "R")


@dataclass(frozen=True)
class Program:
    """A kernel with everything that the compiler must know."""

    name: str
    dtype: Dtype
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program; shared memory and stack in bytes."""

    target: int
    name: str
    dtype: str
    registers: int
    shared: int
    stack: int
    local: int
    mma: int
    warps: int

    def problems(self) -> list[str]:
        """Return what keeps it from being shipped."""
        found = []
        if self.stack or self.local:
            found.append(f"spills: {self.stack} bytes of stack, {self.local} local instructions")
        if self.shared > SHARED[self.target][0]:
            found.append(f"{self.shared} bytes of shared memory, {SHARED[self.target][0]} allowed")
        if self.mma == 0 and self.dtype != "fp32" and self.name != "merge":
            found.append(f"no {TENSOR_CORE[self.target]} instruction")
        return found


def programs(target: int, *, forms: str) -> Iterator[Program]:
    """Yield the programs of a target; see `main` for the forms."""
    tiles = TILES[target]
    chosen = slice(1) if forms == "quick" else slice(None)
    for dtype in ("bf16",) if forms == "quick" else ("bf16", "fp16"):
        for tile in tiles.first[chosen]:
            yield from first(tile, dtype, forms)
        for tile in tiles.first_one_bank[chosen]:
            yield from first(tile, dtype, forms, one_bank=True)
        for tile in tiles.second[chosen]:
            yield second(tile, dtype, tiles.first[0])
        for tile in () if forms == "quick" else tiles.second_narrow:
            yield second(tile, dtype, tiles.first[0], recompute=True)
    if forms != "quick":
        for tile in tiles.first_float:
            yield from first(tile, "fp32", forms)
        for tile in tiles.first_float_one_bank:
            yield from first(tile, "fp32", forms, one_bank=True)
        for tile in tiles.second_float:
            yield second(tile, "fp32", tiles.first_float[0])
    yield merging(tiles.first[0])


def first(
    tile: FirstTile, dtype: Dtype, forms: str, *, one_bank: bool = False
) -> Iterator[Program]:
    """Describe the first pass: masked with both sides recorded, or in all its forms."""
    banks = "one bank" if one_bank else f"parts of {tile.block_s}"
    signature = dict.fromkeys(
        ("teacher", "student", "teacher_bank", "student_bank"), POINTERS[dtype]
    )
    flags = itertools.product((True, False), repeat=3) if forms == "all" else [(True, True, True)]
    for has_mask, both, even in flags:
        constants = {
            "ONE_BANK": one_bank,
            "HAS_MASK": has_mask,
            "RECORD_STUDENT": both,
            "EVEN": even,
            "PRECISION": "ieee",
            "ROWS": max(128, tile.block_b),
            "BLOCK_B": tile.block_b,
            "BLOCK_K": tile.block_k,
            "BLOCK_S": tile.block_s,
            "BLOCK_D": tile.block_d,
        }
        without = [
            word
            for word, there in (("mask", has_mask), ("student", both), ("even", even))
            if not there
        ]
        name = f"first {tile.block_b} x {tile.block_k} x {tile.block_d}, {banks}"
        name += f", no {' '.join(without)}" if without else ""
        yield _program(name, dtype, first_pass, signature, constants, tile)


def second(
    tile: SecondTile, dtype: Dtype, before: FirstTile, *, recompute: bool = False
) -> Program:
    """Describe the second pass after a first one with the tile `before`."""
    constants = {
        "ROWS": max(before.block_b, tile.block_b),
        "SIDES": 2 if dtype == "fp32" else 1,
        "RECOMPUTE": recompute,
        "HAS_MASK": recompute,
        "WEIGHT": 2.0**15 if dtype == "fp16" else 1.0,
        "PRECISION": "ieee",
        "BLOCK_K": before.block_k,
        "BLOCK_S": before.block_s,
        "BLOCK_B": tile.block_b,
        "BLOCK_N": tile.block_n,
        "BLOCK_C": tile.block_c,
    }
    how = "logits again" if recompute else "from record"
    name = f"second {tile.block_b} x {tile.block_c} x {tile.block_n}, {how}"
    signature = dict.fromkeys(("student", "student_bank"), POINTERS[dtype])
    return _program(name, dtype, second_pass, signature, constants, tile)


def merging(before: FirstTile) -> Program:
    """Describe the merge of the statistics."""
    constants = {
        "PARTS": before.block_k // before.block_s,
        "BLOCK_P": MERGED_PARTS,
        "BLOCK_R": MERGED_ROWS,
    }
    return Program("merge", "fp32", merge, _signature(merge, "fp32", {}), constants, 4, 1)


def _program(
    name: str,
    dtype: Dtype,
    kernel: Any,
    operands: dict[str, str],
    constants: dict[str, Any],
    tile: FirstTile | SecondTile,
) -> Program:
    signature = _signature(kernel, dtype, operands)
    return Program(name, dtype, kernel, signature, constants, tile.num_warps, tile.num_stages)


def _signature(kernel: Any, dtype: Dtype, operands: dict[str, str]) -> dict[str, str]:
    """Return the types of all arguments of a kernel that are no constants."""
    known = {
        **operands,
        "record": "*fp32" if dtype == "fp32" else "*fp16",
        **dict.fromkeys(("image_index", "anchor_index"), "*i64"),
        **dict.fromkeys(("lse", "merged"), "*fp64"),
        **dict.fromkeys(("teacher_peaks", "student_peaks", "statistics", "partial"), "*fp32"),
        **dict.fromkeys(("teacher_scale", "student_scale"), "fp32"),
    }
    names = [p.name for p in kernel.params if not p.is_constexpr]
    return {name: known.get(name, "i32") for name in names}


def compiled(program: Program, target: int) -> Compiled:
    """Compile a program for a target (80, 90, 100) and read what came out."""
    names = [parameter.name for parameter in program.kernel.params]
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in program.signature.items()
        if kind.startswith("*") or name in ALIGNED
    }
    signature = {name: program.signature.get(name, "constexpr") for name in names}
    source = ASTSource(program.kernel, signature, program.constants, aligned)
    options = {"num_warps": program.num_warps, "num_stages": program.num_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    usage, assembly = _inspected(binary.asm["cubin"])
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    instruction = "FFMA" if program.dtype == "fp32" else TENSOR_CORE[target]
    return Compiled(
        target=target,
        name=program.name,
        dtype=program.dtype,
        registers=registers,
        shared=binary.metadata.shared,
        stack=int(re.findall(r"STACK:(\d+)", usage)[-1]),
        local=len(re.findall(r"\b(?:LDL|STL)\b", assembly)),
        mma=len(re.findall(rf"\b{instruction}\b", assembly)),
        warps=resident_warps(target, registers, binary.metadata.shared, program.num_warps),
    )


def _inspected(cubin: bytes) -> tuple[str, str]:
    """Return resource usage and assembly of a compiled program."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [["cuobjdump", "-res-usage"], ["nvdisasm"]]
        return tuple(
            subprocess.run(
                [tools / name, *flags, file.name], check=True, capture_output=True, text=True
            ).stdout
            for name, *flags in commands
        )


def resident_warps(target: int, registers: int, shared: int, num_warps: int) -> int:
    """Estimate the warps on a multiprocessor: 65,536 registers, its shared memory, 64 warps."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = SHARED[target][1] // (shared + 1024)
    return num_warps * min(by_registers, by_shared, 64 // num_warps)


def show(results: list[Compiled]) -> str:
    """Format the results for people."""
    lines = [
        f"{'target':8}{'dtype':7}{'program':42}{'registers':>10}{'shared KiB':>12}{'spills':>8}"
        f"{'MMA':>6}{'warps':>7}"
    ]
    for r in results:
        lines.append(
            f"sm_{r.target:<5}{r.dtype:7}{r.name:42}{r.registers:10}{r.shared / 1024:12.1f}"
            f"{r.stack:8}{r.mma:6}{r.warps:7}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile, print the table, and return 1 when something must not be shipped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", type=int, choices=TILES, default=list(TILES))
    parser.add_argument("--forms", choices=("quick", "usual", "all"), default="usual")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args(arguments)
    results = [
        compiled(program, target)
        for target in options.targets
        for program in programs(target, forms=options.forms)
    ]
    print(show(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    problems = [
        f"sm_{r.target} {r.dtype} {r.name}: {text}" for r in results for text in r.problems()
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
