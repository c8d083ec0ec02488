"""Write a checkpoint in a published layout with random weights, at full size or smaller.

    python tools/write_checkpoint.py r50x4 /tmp/r50x4          # /tmp/r50x4/model.ckpt-225206.*
    python tools/write_checkpoint.py r50x4 /tmp/r50x4 --zip    # and /tmp/r50x4/ResNet50_4x.zip
    python tools/write_checkpoint.py r50-c-byol /tmp/cbyol

For measuring what reading and embedding cost where the published files cannot be fetched. The file
holds what published ones hold beside the network, too: step counter and supervised head.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bundle_writer import write_bundle

from distill.models.layout import TensorFlowLayout
from distill.models.networks import NetworkSpec
from teachers.registry import TEACHERS

SIMCLR_PREFIX, OBJECT_PREFIX = "model.ckpt-225206", "ckpt-1"
NUM_CLASSES = 1000


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("teacher", help="a published teacher of TensorFlow origin")
    parser.add_argument("folder", type=Path, help="where to write; made when it is not there")
    parser.add_argument("--zip", action="store_true", help="pack it as it is published, too")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prefix = write_checkpoint(arguments.teacher, arguments.folder, seed=arguments.seed)
    print(prefix)
    if arguments.zip:
        print(pack(prefix, TEACHERS.get(arguments.teacher)))


def write_checkpoint(teacher: str, folder: Path, *, seed: int = 0) -> Path:
    """Write random weights of a teacher as its publishers laid them out; return the prefix."""
    spec = TEACHERS.get(teacher)
    assert isinstance(spec.layout, TensorFlowLayout), f"{teacher} is not of TensorFlow origin"
    folder.mkdir(parents=True, exist_ok=True)
    is_simclr = not spec.layout.suffix
    prefix = folder / (SIMCLR_PREFIX if is_simclr else OBJECT_PREFIX)
    write_bundle(prefix, variables(spec, spec.layout, np.random.default_rng(seed)))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{prefix.name}"\n')
    return prefix


def variables(
    spec: NetworkSpec, layout: TensorFlowLayout, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every variable of a checkpoint: kernels as He et al. draw them."""
    with torch.device("meta"):
        weights = spec.build(spec.input.image_size).state_dict()
    for key, name in layout.names(list(weights), ()).items():
        shape = layout.stored_shape(tuple(weights[key].shape))
        values = rng.standard_normal(shape, np.float32)
        if name.endswith(f"kernel{layout.suffix}"):
            values *= np.sqrt(2 / np.prod(shape[:-1]))
        else:
            values *= 0.1
            values += key.endswith(("weight", "running_var"))  # gamma and variance
        yield name, values
    step = np.array(225206, np.int64)
    if layout.suffix:
        yield f"global_step{layout.suffix}", step
        return
    head = "head_supervised/head_supervised/linear_layer/dense"
    assert spec.publication is not None
    width = spec.publication.embedding_dim
    yield f"{head}/kernel", np.zeros((width, NUM_CLASSES), np.float32)
    yield f"{head}/bias", np.zeros(NUM_CLASSES, np.float32)
    yield "global_step", step


def pack(prefix: Path, spec: NetworkSpec) -> Path:
    """Pack a checkpoint into a zip archive of its published name, in a folder of that name."""
    assert spec.publication is not None
    archive = prefix.parent / Path(spec.publication.source.url).name
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for part in sorted(prefix.parent.glob(f"{prefix.name}.*")):
            file.write(part, f"{archive.stem}/{part.name}")
        file.write(prefix.parent / "checkpoint", f"{archive.stem}/checkpoint")
    return archive


if __name__ == "__main__":
    main()
