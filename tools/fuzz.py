"""Feed damaged files to every reader, which must return the content or raise DistillError.

    python tools/fuzz.py                         ten minutes for each reader
    python tools/fuzz.py recipe image --seconds 5 --seed 3

Valid files (`fuzz_samples.py`) are changed at random (`fuzz_changes.py`): bits flipped, parts
removed, repeated, replaced by another file's, values of another type in a tree of values. A reader
(`fuzz_targets.py`) may return or raise DistillError. Anything else is a finding, as are more than
ten seconds for a file, more than 2 GiB of memory, and a file written outside its folder. A
finding's input is kept, and its name is printed. Exit status 1 with findings.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fuzz_changes import changed
from fuzz_targets import TARGETS, Target

from distill.errors import DistillError

SECONDS_A_FILE = 10
MEMORY = 2 * 2**30  # bytes beyond what is taken at the start


class _TooLongError(BaseException):  # no reader catches it
    pass


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise when a file takes too long."""

    def give_up(*_: object) -> None:
        raise _TooLongError(f"more than {SECONDS_A_FILE} seconds")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS_A_FILE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def prepare(target: Target, root: Path) -> tuple[Path, list[bytes]]:
    """Make what a reader needs; return where its file belongs, two folders deep, and whole ones."""
    os.environ["DISTILL_CACHE"] = str(root / "cache")
    for folder in ("cache", "make", "up/in"):
        (root / folder).mkdir(parents=True)
    file = root / "up" / "in" / target.name
    files, beside = target.make(root / "make"), target.beside(root / "make")
    for name, content in {**beside, target.name: files[0]}.items():
        other = root / "up" / "in" / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(content)
    return file, files


def _left_in(root: Path) -> set[Path]:
    """Return what a reader might have left, but for what it may keep in the cache."""
    kept = {root / "cache" / name for name in ("embeddings", "shards")}
    inside = {path for path in (root / "up").rglob("*") if not path.is_dir()}
    return {*root.iterdir(), *(root / "cache").iterdir(), *inside} - kept


def fuzz(
    name: str, *, seconds: float, seed: int, keep: Path, most: float = float("inf")
) -> tuple[collections.Counter[str], int]:
    """Feed a reader for some seconds, with so many files at most.

    Returns:
        How often each finding was made, by its last line; and the number of files.
    """
    target, rng, number = TARGETS[name], random.Random(seed), 0
    findings: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        file, files = prepare(target, Path(root))
        expected = _left_in(Path(root))
        end = time.monotonic() + seconds
        while time.monotonic() < end and number < most:
            content, number = changed(files, rng, target.syntax), number + 1
            file.write_bytes(content)
            problem = _problem(target, file)
            stray = _left_in(Path(root)) - expected
            if stray and problem is None:
                problem = f"left {sorted(path.name for path in stray)} behind"
            if problem is not None:
                if problem not in findings:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{seed}-{number}-{file.name}").write_bytes(content)
                findings[problem] += 1
    return findings, number


def _problem(target: Target, file: Path) -> str | None:
    try:
        with _bounded():
            target.read(file)
    except DistillError as error:
        if len(str(error)) > 5000 or "\n" in str(error):
            return f"a message of {len(str(error))} characters"
    except _TooLongError as error:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "/distill/" in frame.filename] or place
        return f"{type(error).__name__} in {ours[-1].name}: {str(error)[:80]!r}"
    return None


def bound_memory() -> None:
    """Let no reader take more than some memory."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def main() -> None:
    """Fuzz the readers that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="READER")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each reader")
    parser.add_argument("--files", type=float, default=float("inf"), help="for each, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bound_memory()
    total = 0
    for name in options.targets or TARGETS:
        findings, number = fuzz(
            name,
            seconds=options.seconds,
            seed=options.seed,
            keep=options.keep,
            most=options.files,
        )
        print(f"{name}: {number:,} files, {len(findings)} findings", flush=True)
        for problem, times in findings.most_common():
            print(f"  {times} x {problem}")
        total += len(findings)
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
