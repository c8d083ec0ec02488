"""The readers that `fuzz.py` tests, each with code that uses everything it read.

The content is used as a command uses it, since a file that parses may still hold values that its
reader does not expect: a run's numbers become a page, a comparison's runs its tables, a shard's
members images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_samples

from distill.comparison.compare import CompareOptions, open_comparison, require_same_options
from distill.comparison.grid import read_grid
from distill.comparison.results import read_results, results_json
from distill.comparison.trial import make_trials
from distill.config import flattened
from distill.data.images import FolderImages
from distill.data.shards import TarImages
from distill.data.shifted import read_class_map, read_frame_groups
from distill.data.voc import open_voc, read_annotation
from distill.embeddings.store import EmbeddingStore
from distill.evaluation.label_subsets import read_names
from distill.exports.record import require_free
from distill.models.checkpoints.open import open_checkpoint
from distill.reports.comparison_tables import comparison_markdown
from distill.reports.gallery import read_class_names
from distill.reports.page import grid_page, run_page
from distill.reports.run_facts import read_run
from distill.run_directory import read_config, read_run_metadata
from distill.training.checkpoints import read_state
from distill.training.configuration import load_recipe, stored_config


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


def _read_options(file: Path) -> None:
    options = read_config(file.parent)
    read_run_metadata(file.parent)
    flattened(stored_config(options, "train", source="the run"))


def _plan(file: Path) -> None:
    for trial in make_trials(read_grid(file)).values():
        trial.identity({})


def _show_run(file: Path) -> None:
    assert "<script>" not in run_page(read_run(file.parent))


def _run_file(name: str) -> Target:
    syntax = {".yaml": "yaml", ".json": "json", ".jsonl": "jsonl"}[Path(name).suffix]
    return Target(
        name, lambda folder: [fuzz_samples.run(folder)[name]], _show_run, fuzz_samples.run, syntax
    )


def _show_comparison(source: Path) -> None:
    comparison = open_comparison(source, CompareOptions(table=True))
    content = read_results(comparison)
    results_json(comparison, content)
    comparison_markdown(content)
    assert "<script>" not in grid_page(content)
    require_same_options(comparison)


def _bundle_part(ending: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [
        v for name, v in fuzz_samples.bundle(folder).items() if name.endswith(ending)
    ]


def _read_tensors(file: Path) -> None:
    with open_checkpoint(file) as opened:
        for name in opened.shapes:
            opened.read(name)


def _read_image(file: Path) -> None:
    image = FolderImages(file.parent, [file.name], name="fuzzed").load(0)
    assert image.mode == "RGB"


def _read_cache(file: Path) -> None:
    store = EmbeddingStore.find(file.parent)
    assert store is None or store.num_done_rows() <= store.contents.shape[0]


def _read_shard(file: Path) -> None:
    images = TarImages([str(file)], name="fuzzed")
    images.fingerprint()
    for i in range(len(images)):
        assert images.load(i).mode == "RGB"


def _read_frames(file: Path) -> None:
    read_frame_groups(file, ["cat", "dog"], None)


def _read_export(file: Path) -> None:
    require_free(file.parent, ["a.onnx"], weights="ab", overwrite=True).with_artifacts(
        [], file.parent
    )


TARGETS = {
    "recipe": Target(
        "recipe.yaml",
        fuzz_samples.recipes,
        lambda file: flattened(load_recipe(str(file))),
        syntax="yaml",
    ),
    "grid": Target("grid.yaml", fuzz_samples.grids, _plan, syntax="yaml"),
    "config": Target("config.yaml", fuzz_samples.recipes, _read_options, syntax="yaml"),
    **{f"run-{Path(name).stem}": _run_file(name) for name in fuzz_samples.RUN},
    "comparison-run": Target(
        fuzz_samples.TRIAL,
        lambda folder: [fuzz_samples.comparison(folder)[fuzz_samples.TRIAL]],
        lambda file: _show_comparison(file.parents[1]),
        fuzz_samples.comparison,
        "json",
    ),
    "comparison-file": Target(
        "kept.json", fuzz_samples.comparison_file, _show_comparison, syntax="json"
    ),
    "checkpoint": Target("step-000000001.safetensors", fuzz_samples.states, read_state),
    "safetensors": Target("w.safetensors", fuzz_samples.safetensors, _read_tensors),
    "pytorch": Target("w.pth", fuzz_samples.pytorch, _read_tensors),
    "bundle-index": Target(
        "model.ckpt-1.index", _bundle_part(".index"), _read_tensors, fuzz_samples.bundle
    ),
    "bundle-data": Target(
        "model.ckpt-1.data-00000-of-00001",
        _bundle_part("of-00001"),
        lambda file: _read_tensors(file.with_name("model.ckpt-1")),
        fuzz_samples.bundle,
    ),
    "zip": Target("w.zip", fuzz_samples.zips, _read_tensors),
    "tar": Target("w.tar", fuzz_samples.tars, _read_tensors),
    "image": Target("image.jpg", fuzz_samples.images, _read_image),
    "shard": Target("train-0.tar", fuzz_samples.shards, _read_shard),
    "annotation": Target("a.xml", fuzz_samples.annotations, read_annotation),
    "voc-list": Target(
        fuzz_samples.VOC_LIST,
        lambda folder: [fuzz_samples.voc(folder)[fuzz_samples.VOC_LIST]],
        lambda file: open_voc(file.parents[2]),
        fuzz_samples.voc,
    ),
    "class-map": Target("map.json", fuzz_samples.class_maps, read_class_map, syntax="json"),
    "class-map-csv": Target("map.csv", fuzz_samples.class_map_rows, read_class_map),
    "class-names": Target("names.txt", fuzz_samples.lists, read_class_names),
    "frames": Target("frames.csv", fuzz_samples.frames, _read_frames),
    "label-list": Target("names.txt", fuzz_samples.lists, read_names),
    "cache": Target(
        "manifest.json",
        lambda folder: [fuzz_samples.cache(folder)["manifest.json"]],
        _read_cache,
        fuzz_samples.cache,
        "json",
    ),
    "export": Target("export.json", fuzz_samples.records, _read_export, syntax="json"),
}
