"""The program that one rank of a test with several processes runs.

    python tests/ddp.py FOLDER

FOLDER/task.pickle holds the file and the name of the function to call, and its arguments;
FOLDER/result-RANK.pickle receives what it returned. The fixture `run_ranks` starts it.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType


def load(path: str) -> ModuleType:
    """Import a test file by its place: no package holds the tests."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(folder: Path) -> None:
    """Call the function between joining the other ranks and leaving them."""
    import torch

    from distill import distributed

    torch.set_num_threads(1)
    path, name, arguments = pickle.loads((folder / "task.pickle").read_bytes())
    function = getattr(load(path), name)
    distributed.start(torch.device("cpu"))
    try:
        result = function(*arguments)
        (folder / f"result-{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(result))
    finally:
        distributed.stop()


if __name__ == "__main__":
    sys.path.pop(0)  # tests/students would stand before students
    main(Path(sys.argv[1]))
