"""Valid files for the readers that `fuzz.py` tests.

A function returns the contents of one or more files of a kind, or those of a folder by name; it may
write in the folder that it is given.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bundle_writer import write_bundle
from PIL import Image

from distill.comparison.compare import CompareOptions, open_comparison
from distill.comparison.grid import read_grid
from distill.comparison.results import read_results, results_json
from distill.comparison.trial import make_trials
from distill.config import flattened
from distill.models.checkpoints.safetensors import write_safetensors
from distill.training.checkpoints import write_state
from distill.training.configuration import TrainConfig

RUN = ("config.yaml", "metrics.json", "log.jsonl", "robustness.json")


def _yaml(*contents: Any) -> list[bytes]:
    return [yaml.safe_dump(content).encode() for content in contents]


def recipes(_: Path) -> list[bytes]:
    """Recipes: every option, one, an alias, a number that YAML takes for text."""
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


def grids(_: Path) -> list[bytes]:
    """Grids: several of everything, one of everything."""
    methods = {"one": {}, "two": {"variant": "two-queue", "per_student": {"alexnet": {}}}}
    more = {"seeds": [0, 1], "students": ["resnet18", "alexnet"], "methods": methods}
    return _yaml({**_GRID, **more, "teachers": ["pixels", *_GRID["teachers"]]}, _GRID)


def run(_: Path) -> dict[str, bytes]:
    """A run's directory."""
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


TRIAL = "trials/one--resnet18--own--seed0.json"


def comparison(folder: Path) -> dict[str, bytes]:
    """A comparison's directory with one run that is done, and the tuning that chose for it."""
    (content,) = _yaml(_GRID)
    (folder / "a-grid.yaml").write_bytes(content)
    trials = make_trials(read_grid(folder / "a-grid.yaml"))
    trial = trials[Path(TRIAL).stem]
    status = {
        **{"state": "done", "metrics": {"nn_accuracy": 0.5, "train_seconds": 9.0}},
        **{"holdout_curve": [[1, 0.4], [2, 0.5]], "seconds": 10.0, "error": None},
    }
    files = {
        f"trials/{name}.json": {**status, "options": trials[name].identity({})}
        for name in trial.tuned_by
    }
    files[TRIAL] = {**status, "options": trial.identity({"learning_rate": 0.1})}
    written = {name: json.dumps(one).encode() for name, one in files.items()}
    return {"grid.yaml": content, **written}


def comparison_file(folder: Path) -> list[bytes]:
    """The results of a comparison as one file."""
    for name, content in comparison(folder).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    opened = open_comparison(folder, CompareOptions(table=True))
    return [results_json(opened, read_results(opened)).encode()]


def _tensors() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.arange(24.0).reshape(4, 6), "0.bias": torch.zeros(4)}


def _written(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def states(folder: Path) -> list[bytes]:
    """A state file."""
    state = {"a": _tensors(), "b": [1, None, {"c": torch.ones(3)}], 0: "x"}
    return [_written(folder, "s", lambda path: write_state(path, state, {"progress": {}}))]


def safetensors(folder: Path) -> list[bytes]:
    """Weights in a safetensors file."""

    def write(path: Path) -> None:
        write_safetensors(path, _tensors(), {"name": "resnet18"})

    return [_written(folder, "s", write)]


def pytorch(folder: Path) -> list[bytes]:
    """PyTorch's two formats."""

    def old(path: Path) -> None:
        torch.save(_tensors(), path, _use_new_zipfile_serialization=False)

    return [
        _written(folder, "new", lambda path: torch.save({"state_dict": _tensors()}, path)),
        _written(folder, "old", old),
    ]


def bundle(folder: Path) -> dict[str, bytes]:
    """TensorFlow's bundle: index and data."""
    prefix = folder / "model.ckpt-1"
    write_bundle(prefix, [(name, tensor.numpy()) for name, tensor in _tensors().items()])
    return {path.name: path.read_bytes() for path in folder.glob("model.ckpt-1.*")}


def zips(folder: Path) -> list[bytes]:
    """Bundles in zip files, two of which lead elsewhere."""
    found = []
    for names in ("model/{}", "../../{}", "/tmp/{}"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in bundle(folder).items():
                file.writestr(names.format(name), content)
        found.append(buffer.getvalue())
    return found


def tars(folder: Path) -> list[bytes]:
    """Bundles in tar files with a link, plain and in gzip; one leads elsewhere."""
    found = []
    for mode, names in (("w", "model/{}"), ("w:gz", "model/{}"), ("w", "../../{}")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as file:
            for name, content in bundle(folder).items():
                entry = tarfile.TarInfo(names.format(name))
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
            link = tarfile.TarInfo("model/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(link)
        found.append(buffer.getvalue())
    return found


def _encoded(kind: str) -> bytes:
    buffer, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (20, 30, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def images(_: Path) -> list[bytes]:
    """Images in seven formats."""
    return [_encoded(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


def annotations(_: Path) -> list[bytes]:
    """An annotation of VOC with two objects."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>"
    thing = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
    return [f"<annotation><filename>a.jpg</filename>{thing}{thing}</annotation>".encode()]


def class_maps(_: Path) -> list[bytes]:
    """A class map as JSON."""
    return [json.dumps({"n0144": "cat", "n0210": ["cat", "dog"], "tench": "dog"}).encode()]


def class_map_rows(_: Path) -> list[bytes]:
    """Class maps as CSV."""
    return [b"name,class\nn01,cat\nn02,dog\n", b'\xef\xbb\xbfname,class\n"n,01",cat\n']


def lists(_: Path) -> list[bytes]:
    """Lists of a name, or two, a line."""
    return [b"n01440764 tench, Tinca tinca\nn02102040 English springer\n", b"a/b.jpg x\n"]


def cache(folder: Path) -> dict[str, bytes]:
    """A teacher's embeddings on the disk."""
    from distill import cache

    if not (folder / "c").exists():
        cache(teacher="pixels", data="digits", teacher_cache=folder / "c", split="val")
    manifest = next((folder / "c").rglob("manifest.json"))
    return {path.name: path.read_bytes() for path in manifest.parent.iterdir() if path.is_file()}


def shards(_: Path) -> list[bytes]:
    """Tar shards in three formats, with classes."""
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


def frames(_: Path) -> list[bytes]:
    """Tables of frames."""
    return [
        b"anchor,frame,label\na.jpg,b.jpg,dog\na.jpg,a.jpg,dog\n",
        b"anchor,frame,label,offset\na.jpg,a.jpg,dog;cat,0\na.jpg,b.jpg,cat,-1\n",
    ]


VOC_LIST = "ImageSets/Main/trainval.txt"


def voc(folder: Path) -> dict[str, bytes]:
    """A dataset in the layout of VOC."""
    names = [f"00000{number}" for number in range(3)]
    return {
        **{f"JPEGImages/{name}.jpg": _encoded("JPEG") for name in names},
        **{f"Annotations/{name}.xml": annotations(folder)[0] for name in names},
        VOC_LIST: "".join(f"{name}\n" for name in names[:2]).encode(),
        "ImageSets/Main/test.txt": f"{names[2]} 1\n".encode(),
    }


def records(_: Path) -> list[bytes]:
    """The record of an export."""
    artifact = {
        **{"name": "a.onnx", "format": "onnx", "sha256": "ab", "num_bytes": 3},
        **{"l2_normalize": True, "absolute_difference": 0.1, "relative_difference": 0.1},
        **{"milliseconds": {"1": [1.0, 2.0]}, "versions": {"onnx": "1"}},
    }
    return [json.dumps({"weights": "ab", "artifacts": [artifact], "card": "cd"}).encode()]
