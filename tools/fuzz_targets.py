"""The readers that `fuzz.py` feeds: whole files for each, and what reads them to the end.

What is read is used as a command uses it, since a file that parses may still hold other values than
its reader expects: a run's numbers become a page, a comparison's runs its tables, a shard's members
images.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
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
from distill.data.frame_groups import read_frame_groups
from distill.data.images import FolderImages
from distill.data.tar_images import TarImages
from distill.data.voc import open_voc
from distill.data.voc_annotation import read_annotation
from distill.download.record import read_record
from distill.download.source import DownloadError
from distill.embedding_cache import EmbeddingStore
from distill.engine.run_directory import read_circumstances, read_config
from distill.engine.state_file import read_state, write_state
from distill.errors import DistillError
from distill.evaluation.label_subsets import read_names
from distill.exports.record import require_free
from distill.jobs.comparison.cells import asked_options
from distill.jobs.comparison.job import make_plan
from distill.jobs.comparison.options import CompareOptions
from distill.jobs.comparison.record import comparison_record
from distill.jobs.comparison.results import read_results
from distill.jobs.comparison.same import require_same_grid
from distill.jobs.report_class_names import read_class_names
from distill.jobs.report_run import read_run
from distill.options import flattened, updated
from distill.recipes import load_recipe
from distill.report.grid_markdown import grid_markdown
from distill.report.page import Made, grid_page, run_page

MADE = Made("now", "0")
RUN = ("config.yaml", "metrics.json", "log.jsonl", "robustness.json")


@dataclass(frozen=True)
class Target:
    """A reader, and whole files for it.

    Attributes:
        name: Of the file that is read, in a folder of its own; below it where it has folders.
        make: Returns whole files as bytes, in a folder where it may write.
        read: Reads the file; other files of `beside` lie next to it.
        beside: Files that are left whole, by name.
        syntax: `json`, `jsonl` or `yaml` where the file is a tree of values.
    """

    name: str
    make: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    beside: Callable[[Path], dict[str, bytes]] = lambda folder: {}
    syntax: str | None = None


def _yaml(*contents: Any) -> list[bytes]:
    return [yaml.safe_dump(content).encode() for content in contents]


def _recipes(_: Path) -> list[bytes]:
    whole = {**flattened(TrainConfig()), "teacher": "pixels", "student": "resnet18"}
    return [*_yaml(whole, {"epochs": 3}), b"a: &a [x, x]\nepochs: [*a, *a]\n", b"seed: 1e3\n"]


_GRID: dict[str, Any] = {
    "data": "digits",
    "common": {"epochs": 2},
    "teachers": [{"name": "own", "teacher": "pixels"}],
    "students": ["resnet18"],
    "methods": {"one": {}},
    "tune": {"learning_rate": [0.1, 0.2]},
}


def _grids(_: Path) -> list[bytes]:
    methods = {"one": {}, "two": {"variant": "two-queue", "per_student": {"alexnet": {}}}}
    more = {"seeds": [0, 1], "students": ["resnet18", "alexnet"], "methods": methods}
    return _yaml({**_GRID, **more, "teachers": ["pixels", *_GRID["teachers"]]}, _GRID)


def _read_options(file: Path) -> None:
    options = read_config(file.parent)
    read_circumstances(file.parent)
    flattened(updated(TrainConfig(), options, source="the run"))


def _plan(file: Path) -> None:
    for cell in make_plan(file, CompareOptions(output=file.parent / "none")).cells.values():
        asked_options(cell, {})


def _run(_: Path) -> dict[str, bytes]:
    config = {**flattened(TrainConfig()), "teacher": "pixels", "student": "resnet18"}
    config |= {"command": "train", "versions": {"torch": "2"}, "fingerprints": {"train": "ab"}}
    metrics = {
        **{"nn_accuracy": 0.5, "untrained_nn_accuracy": 0.1, "teacher_nn_accuracy": 0.9},
        **{"train_seconds": 61.5, "clusters": [[0, 2], [1, 0]], "note": "x"},
    }
    line = {"step": 1, "epoch": 1, "loss": 2.5, "learning_rate": 0.1, "data_wait": 0.0}
    log = [line, {**line, "step": 2, "event": "check", "holdout_nn_accuracy": 0.4}]
    errors = {"fog": {"1": 0.3, "2": 0.4}, "snow": {"1": 0.3, "2": 0.4}}
    entry = {"network": "student", "settings": {"seed": 0}, "clean_error": 0.2, "errors": errors}
    contents = [
        *_yaml(config),
        json.dumps(metrics).encode(),
        b"".join(json.dumps(one).encode() + b"\n" for one in log),
        json.dumps({"0123": entry, "4567": {**entry, "network": "teacher"}}).encode(),
    ]
    return dict(zip(RUN, contents, strict=True))


def _show_run(file: Path) -> None:
    assert "<script>" not in run_page(read_run(file.parent), MADE)


def _run_file(name: str) -> Target:
    syntax = {".yaml": "yaml", ".json": "json", ".jsonl": "jsonl"}[Path(name).suffix]
    return Target(name, lambda folder: [_run(folder)[name]], _show_run, _run, syntax)


_CELL = "cells/one--resnet18--own--seed0.json"


def _comparison(folder: Path) -> dict[str, bytes]:
    (content,) = _yaml(_GRID)
    (folder / "a-grid.yaml").write_bytes(content)
    cells = make_plan(folder / "a-grid.yaml", CompareOptions(output=folder / "none")).cells
    asked = asked_options(cells[Path(_CELL).stem], {"learning_rate": 0.1})
    outcome = {
        **{"state": "done", "asked": asked, "metrics": {"nn_accuracy": 0.5, "train_seconds": 9.0}},
        **{"holdout_curve": [[1, 0.4], [2, 0.5]], "seconds": 10.0, "error": None},
    }
    return {"grid.yaml": content, _CELL: json.dumps(outcome).encode()}


def _show_comparison(file: Path) -> None:
    plan = make_plan(file.parents[1], CompareOptions(resume=True))
    cells, directory = list(plan.cells.values()), plan.directory
    content = read_results(plan.grid, cells, directory)
    json.dumps(comparison_record(content, cells, plan.cells, directory))
    grid_markdown(content)
    assert "<script>" not in grid_page(content, MADE)
    require_same_grid(plan.cells, directory, retry_failed=False)


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


def _encoded(kind: str) -> bytes:
    buffer, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (20, 30, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _images(_: Path) -> list[bytes]:
    return [_encoded(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


def _read_image(file: Path) -> None:
    image = FolderImages(file.parent, [file.name], name="fuzzed").load(0)
    assert image.mode == "RGB"


def _annotations(_: Path) -> list[bytes]:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>"
    thing = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
    return [f"<annotation><filename>a.jpg</filename>{thing}{thing}</annotation>".encode()]


def _class_maps(_: Path) -> list[bytes]:
    return [json.dumps({"n0144": "cat", "n0210": ["cat", "dog"], "tench": "dog"}).encode()]


def _class_map_rows(_: Path) -> list[bytes]:
    return [b"name,class\nn01,cat\nn02,dog\n", b'\xef\xbb\xbfname,class\n"n,01",cat\n']


def _lists(_: Path) -> list[bytes]:
    return [b"n01440764 tench, Tinca tinca\nn02102040 English springer\n", b"a/b.jpg x\n"]


def _cache(folder: Path) -> dict[str, bytes]:
    from distill import cache

    if not (folder / "c").exists():
        cache(teacher="pixels", data="digits", teacher_cache=folder / "c", split="val")
    manifest = next((folder / "c").rglob("manifest.json"))
    return {path.name: path.read_bytes() for path in manifest.parent.iterdir() if path.is_file()}


def _read_cache(file: Path) -> None:
    store = EmbeddingStore.find(file.parent)
    assert store is None or store.num_done_rows() <= store.contents.shape[0]


def _shards(_: Path) -> list[bytes]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
            contents = [("a/1.png", _encoded("PNG")), ("a/1.cls", b"0"), ("../2.cls", b"1")]
            for name, content in (*contents, ("../2.jpg", _encoded("JPEG"))):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        found.append(buffer.getvalue())
    return found


def _read_shard(file: Path) -> None:
    images = TarImages([str(file)], name="fuzzed")
    images.fingerprint()
    for i in range(len(images)):
        assert images.load(i).mode == "RGB"


def _frames(_: Path) -> list[bytes]:
    return [
        b"anchor,frame,label\na.jpg,b.jpg,dog\na.jpg,a.jpg,dog\n",
        b"anchor,frame,label,offset\na.jpg,a.jpg,dog;cat,0\na.jpg,b.jpg,cat,-1\n",
    ]


def _read_frames(file: Path) -> None:
    read_frame_groups(file, ["cat", "dog"], None)


_VOC_LIST = "ImageSets/Main/trainval.txt"


def _voc(folder: Path) -> dict[str, bytes]:
    names = [f"00000{number}" for number in range(3)]
    return {
        **{f"JPEGImages/{name}.jpg": _encoded("JPEG") for name in names},
        **{f"Annotations/{name}.xml": _annotations(folder)[0] for name in names},
        _VOC_LIST: "".join(f"{name}\n" for name in names[:2]).encode(),
        "ImageSets/Main/test.txt": f"{names[2]} 1\n".encode(),
    }


def _records(_: Path) -> list[bytes]:
    artifact = {
        **{"name": "a.onnx", "format": "onnx", "sha256": "ab", "num_bytes": 3},
        **{"l2_normalize": True, "absolute_difference": 0.1, "relative_difference": 0.1},
        **{"milliseconds": {"1": [1.0, 2.0]}, "versions": {"onnx": "1"}},
    }
    return [json.dumps({"weights": "ab", "artifacts": [artifact], "card": "cd"}).encode()]


def _read_export(file: Path) -> None:
    require_free(file.parent, ["a.onnx"], weights="ab", overwrite=True).with_artifacts(
        [], file.parent
    )


def _downloads(_: Path) -> list[bytes]:
    return [b'{"url": "https://x/y", "bytes": 3, "sha256": "ab", "fetched": "2026-01-01"}']


def _read_download(file: Path) -> None:
    try:
        read_record(file.with_suffix(""))
    except DownloadError as error:
        raise DistillError(str(error)) from error


TARGETS = {
    "recipe": Target(
        "recipe.yaml", _recipes, lambda file: flattened(load_recipe(str(file))), syntax="yaml"
    ),
    "grid": Target("grid.yaml", _grids, _plan, syntax="yaml"),
    "config": Target("config.yaml", _recipes, _read_options, syntax="yaml"),
    **{f"run-{Path(name).stem}": _run_file(name) for name in RUN},
    "comparison-run": Target(
        _CELL, lambda folder: [_comparison(folder)[_CELL]], _show_comparison, _comparison, "json"
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
    "shard": Target("train-0.tar", _shards, _read_shard),
    "annotation": Target("a.xml", _annotations, read_annotation),
    "voc-list": Target(
        _VOC_LIST,
        lambda folder: [_voc(folder)[_VOC_LIST]],
        lambda file: open_voc(file.parents[2]),
        _voc,
    ),
    "class-map": Target("map.json", _class_maps, read_class_map, syntax="json"),
    "class-map-csv": Target("map.csv", _class_map_rows, read_class_map),
    "class-names": Target("names.txt", _lists, read_class_names),
    "frames": Target("frames.csv", _frames, _read_frames),
    "label-list": Target("names.txt", _lists, read_names),
    "cache": Target(
        "manifest.json",
        lambda folder: [_cache(folder)["manifest.json"]],
        _read_cache,
        _cache,
        "json",
    ),
    "export": Target("export.json", _records, _read_export, syntax="json"),
    "download": Target("w.pth.json", _downloads, _read_download, syntax="json"),
}
