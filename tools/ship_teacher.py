"""Put a pre-trained backbone into the package: weights, recipe, metrics and their SHA-256.

    distill pretrain --recipe digits-cbyol --output runs/digits-cbyol
    python tools/ship_teacher.py runs/digits-cbyol teachers/shipped/digits-cbyol

Weights of at most 3 MiB are shipped; the configuration is written without local paths.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import yaml

FILES = ("backbone.safetensors", "config.yaml", "metrics.json")
PLACES = ("output", "resume")  # of the machine it was trained on, not of the teacher
MAX_BYTES = 3 * 2**20


def ship(run: Path, folder: Path) -> None:
    """Copy what is shipped of a run and write SHA256SUMS beside it.

    Raises:
        SystemExit: The run is not complete or its weights exceed 3 MiB.
    """
    missing = [name for name in FILES if not (run / name).exists()]
    if missing:
        raise SystemExit(f"{run} has no {', '.join(missing)}; finish the run first")
    size = (run / FILES[0]).stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{run / FILES[0]} has {size:,} bytes, at most {MAX_BYTES:,} are shipped")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in FILES:
        _copy(run / name, folder / name)
        lines.append(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))
    print("".join(lines), end="")


def _copy(source: Path, target: Path) -> None:
    if source.suffix != ".yaml":
        shutil.copyfile(source, target)
        return
    config = yaml.safe_load(source.read_text())
    kept = {name: value for name, value in config.items() if name not in PLACES}
    target.write_text(yaml.safe_dump(kept, sort_keys=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.folder)
