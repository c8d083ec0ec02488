"""Feeds damaged files to every reader: a sentence or the content, never a crash, hang or gigabytes.

    python tools/fuzz.py                         ten minutes for each reader
    python tools/fuzz.py recipe image --seconds 5 --seed 3

Whole files are made first, then changed at random: bits flipped, parts cut, doubled, moved, swapped
with another file's, filled with bytes that readers fear. A reader may return or raise DistillError.
Anything else is a finding, as are ten seconds for a file, 2 GiB of memory, and a file that appears
where none should. A finding's input is kept, and its name is printed. Exit status 1 with findings.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bundle_writer import write_bundle
from PIL import Image

from distill.checkpoints import open_checkpoint
from distill.checkpoints.safetensors_file import write_safetensors
from distill.config import TrainConfig
from distill.data.class_map import read_class_map
from distill.data.images import FolderImages
from distill.data.voc_annotation import read_annotation
from distill.embedding_cache import EmbeddingStore
from distill.embedding_cache.manifest import read_manifest
from distill.engine.run_directory import read_circumstances, read_config, read_metrics
from distill.engine.state_file import read_state, write_state
from distill.errors import DistillError
from distill.jobs.comparison.read_grid import read_grid
from distill.options import flattened, updated
from distill.recipes import load_recipe

SECONDS_A_FILE = 10
MEMORY = 2 * 2**30  # bytes beyond what is taken at the start
FEARED = (
    *(b"\x00" * 8, b"\xff" * 8, b"\x80\x00\x00\x00", b"../" * 4, b"/etc/passwd", b"%s%n"),
    *(b"[" * 3000, b"{" * 3000, b"&a [*a, *a]", b"!!python/object/apply:os.system [x]", b"1e999"),
    *(b"9" * 5000, b"2001-99-99", b"NaN", b"-1", b"\xed\xa0\x80", b"<!ENTITY", b"\r\n"),
)


@dataclass(frozen=True)
class Target:
    """A reader, and whole files for it.

    Attributes:
        name: Of the file that is read, in a folder of its own.
        make: Returns whole files as bytes, in a folder where it may write.
        read: Reads the file; other files of `beside` lie next to it.
        beside: Files that are left whole, by name.
    """

    name: str
    make: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    beside: Callable[[Path], dict[str, bytes]] = lambda folder: {}


def _yaml(*contents: Any) -> list[bytes]:
    return [yaml.safe_dump(content).encode() for content in contents]


def _recipes(_: Path) -> list[bytes]:
    whole = {**flattened(TrainConfig()), "teacher": "pixels", "student": "resnet18"}
    return [*_yaml(whole, {"epochs": 3}), b"a: &a [x, x]\nepochs: [*a, *a]\n", b"seed: 1e3\n"]


def _grids(_: Path) -> list[bytes]:
    grid = {
        "data": "digits",
        "common": {"epochs": 2},
        "teachers": ["pixels", {"name": "own", "teacher": "pixels"}],
        "students": ["resnet18", "alexnet"],
        "seeds": [0, 1],
        "methods": {"one": {}, "two": {"variant": "two-queue", "per_student": {"alexnet": {}}}},
        "tune": {"learning_rate": [0.1, 0.2]},
    }
    return _yaml(grid)


def _read_run(file: Path) -> None:
    options = read_config(file.parent)
    read_circumstances(file.parent)
    flattened(updated(TrainConfig(), options, source="the run"))


def _tensors() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.arange(24.0).reshape(4, 6), "0.bias": torch.zeros(4)}


def _written(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def _states(folder: Path) -> list[bytes]:
    state = {"a": _tensors(), "b": [1, None, {"c": torch.ones(3)}], 0: "x"}
    return [_written(folder, "s", lambda path: write_state(path, state, {"progress": {}}))]


def _safetensors(folder: Path) -> list[bytes]:
    def write(path: Path) -> None:
        write_safetensors(path, _tensors(), {"name": "resnet18"})

    return [_written(folder, "s", write)]


def _pytorch(folder: Path) -> list[bytes]:
    def old(path: Path) -> None:
        torch.save(_tensors(), path, _use_new_zipfile_serialization=False)

    return [
        _written(folder, "new", lambda path: torch.save({"state_dict": _tensors()}, path)),
        _written(folder, "old", old),
    ]


def _bundle(folder: Path) -> dict[str, bytes]:
    prefix = folder / "model.ckpt-1"
    write_bundle(prefix, [(name, tensor.numpy()) for name, tensor in _tensors().items()])
    return {path.name: path.read_bytes() for path in folder.glob("model.ckpt-1.*")}


def _bundle_part(ending: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [v for name, v in _bundle(folder).items() if name.endswith(ending)]


def _zips(folder: Path) -> list[bytes]:
    found = []
    for names in ("model/{}", "../../{}", "/tmp/{}"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in _bundle(folder).items():
                file.writestr(names.format(name), content)
        found.append(buffer.getvalue())
    return found


def _tars(folder: Path) -> list[bytes]:
    found = []
    for mode, names in (("w", "model/{}"), ("w:gz", "model/{}"), ("w", "../../{}")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as file:
            for name, content in _bundle(folder).items():
                entry = tarfile.TarInfo(names.format(name))
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
            link = tarfile.TarInfo("model/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(link)
        found.append(buffer.getvalue())
    return found


def _read_tensors(file: Path) -> None:
    with open_checkpoint(file) as opened:
        for name in opened.shapes:
            opened.read(name)


def _images(_: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    found = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _read_image(file: Path) -> None:
    image = FolderImages(file.parent, [file.name], name="fuzzed").load(0)
    assert image.mode == "RGB"


def _annotations(_: Path) -> list[bytes]:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>"
    thing = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
    return [f"<annotation><filename>a.jpg</filename>{thing}{thing}</annotation>".encode()]


def _class_maps(_: Path) -> list[bytes]:
    names = {"n0144": 3, "n0210": [1, 2], "tench": 0}
    return [json.dumps(names).encode(), b"folder,class\nn01,3\nn02,4;5\n", b"n01 3\nn02 4\n"]


def _caches(folder: Path) -> list[bytes]:
    from distill import cache

    cache(teacher="pixels", data="digits", teacher_cache=folder / "c", split="val")
    manifest = next((folder / "c").rglob("manifest.json"))
    return [manifest.read_bytes()]


def _read_cache(file: Path) -> None:
    read_manifest(file)
    EmbeddingStore.find(file.parent)


TARGETS = {
    "recipe": Target("recipe.yaml", _recipes, lambda file: flattened(load_recipe(str(file)))),
    "grid": Target("grid.yaml", _grids, read_grid),
    "config": Target("config.yaml", _recipes, _read_run),
    "metrics": Target(
        "metrics.json",
        lambda _: [b'{"nn_accuracy": 0.5, "x": [1, {"y": null}]}'],
        lambda file: read_metrics(file.parent),
    ),
    "checkpoint": Target("step-000000001.safetensors", _states, read_state),
    "safetensors": Target("w.safetensors", _safetensors, _read_tensors),
    "pytorch": Target("w.pth", _pytorch, _read_tensors),
    "bundle-index": Target("model.ckpt-1.index", _bundle_part(".index"), _read_tensors, _bundle),
    "bundle-data": Target(
        "model.ckpt-1.data-00000-of-00001",
        _bundle_part("of-00001"),
        lambda file: _read_tensors(file.with_name("model.ckpt-1")),
        _bundle,
    ),
    "zip": Target("w.zip", _zips, _read_tensors),
    "tar": Target("w.tar", _tars, _read_tensors),
    "image": Target("image.jpg", _images, _read_image),
    "annotation": Target("a.xml", _annotations, read_annotation),
    "class-map": Target("map.json", _class_maps, read_class_map),
    "class-map-csv": Target("map.csv", _class_maps, read_class_map),
    "cache": Target("manifest.json", _caches, _read_cache),
}


def changed(files: list[bytes], rng: random.Random) -> bytes:
    """Return one of the files, changed in one to four places."""
    content = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        length = min(rng.choice([1, 4, 16, 200]), len(content) - place)
        part = content[place : place + length]
        kind = rng.randrange(7)
        if kind == 0 and length:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = part * rng.choice([1, 2, 50])
        elif kind == 4:
            content[place:place] = rng.choice(FEARED)
        elif kind == 5:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            content[place : place + length] = other[start : start + rng.choice([4, 64, 1000])]
        elif rng.random() < 0.3:
            del content[place:]
    return bytes(content)


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


def fuzz(
    name: str, *, seconds: float, seed: int, keep: Path, most: float = float("inf")
) -> tuple[collections.Counter, int]:
    """Feed a reader for some seconds, with so many files at most.

    Returns:
        How often each finding was made, by its last line; and the number of files.
    """
    target, rng, findings, number = TARGETS[name], random.Random(seed), collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        os.environ["DISTILL_CACHE"] = str(Path(root) / "cache")
        for folder in ("cache", "make", "up/up/in"):
            (Path(root) / folder).mkdir(parents=True)
        inside = Path(root) / "up" / "up" / "in"
        files = target.make(Path(root) / "make")
        beside = {**target.beside(Path(root) / "make")}
        beside.pop(target.name, None)
        for other, content in beside.items():
            (inside / other).write_bytes(content)
        expected = {*beside, target.name}
        end = time.monotonic() + seconds
        while time.monotonic() < end and number < most:
            content, number = changed(files, rng), number + 1
            (inside / target.name).write_bytes(content)
            problem = _problem(target, inside / target.name)
            stray = {path.name for path in inside.iterdir()} - expected
            stray |= {path.name for path in inside.parent.iterdir()} - {"in"}
            stray |= {path.name for path in (Path(root) / "cache").iterdir()} - {"embeddings"}
            if stray and problem is None:
                problem = f"left {sorted(stray)} behind"
            if problem is not None:
                if problem not in findings:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{seed}-{number}-{target.name}").write_bytes(content)
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
