"""Starts processes at once: PyTorch is imported before, and each process is a fork of this program.

It reads requests, a line of JSON each, and answers with a line each:

    {"argv": [...], "output": FILE, "env": {...}}   ->  number of a process that runs `distill ...`
    {"folder": FOLDER, "output": FILE, "env": {...}} ->  number of a process that runs a task
    {"wait": PID}  ->  its exit status, negative when a signal ended it
    {"poll": PID}  ->  the same, or null while it runs

FOLDER/task.pickle holds the file and the name of a function to call between joining the other ranks
and leaving them, and its arguments; FOLDER/result-RANK.pickle receives what it returned.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

torch.set_num_threads(1)  # a fork has no threads but its own
sys.path.pop(0)  # tests/students would stand before students

from distill import distributed  # noqa: E402
from distill.cli.main import run  # noqa: E402

PRELOADED = ("distill.training.train", "distill.training.pretrain", "torch.distributed.nn")
LIBRARIES = (
    "timm",
    "torchvision.transforms.v2",
    "torch.utils.tensorboard",
    "sklearn.datasets",
    "faiss",
)
for module in (*PRELOADED, *LIBRARIES):
    importlib.import_module(module)

ENDED: dict[int, int] = {}


def start(work: Callable[[], int], output: str, env: dict[str, str]) -> int:
    """Fork a process that does some work and ends with its status; return its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ.update(env)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


def run_task(folder: Path) -> int:
    """Call the function of a task as one rank."""
    path, name, arguments = pickle.loads((folder / "task.pickle").read_bytes())
    function = getattr(load(path), name)
    distributed.start(torch.device("cpu"))
    try:
        result = function(*arguments)
        (folder / f"result-{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(result))
    finally:
        distributed.stop()
    return 0


def load(path: str) -> ModuleType:
    """Import a test file by its place: no package holds the tests."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def status(process: int, options: int) -> int | None:
    """Return the exit status of a process, None while it runs."""
    if process not in ENDED:
        number, found = os.waitpid(process, options)
        if number == 0:
            return None
        ENDED[process] = os.waitstatus_to_exitcode(found)
    return ENDED[process]


def answer(request: dict) -> int | None:
    """Do what a request asks for."""
    if "wait" in request:
        return status(request["wait"], 0)
    if "poll" in request:
        return status(request["poll"], os.WNOHANG)
    output, env = request["output"], request.get("env", {})
    if "argv" in request:
        return start(lambda: run(request["argv"]), output, env)
    return start(lambda: run_task(Path(request["folder"])), output, env)


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
