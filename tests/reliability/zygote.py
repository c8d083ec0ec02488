"""Starts `distill` commands at once: PyTorch is imported before, and each command is a fork.

A program. It reads requests, a line of JSON each, and answers with a line each:

    {"argv": [...], "output": FILE}   ->  the process number of the command, which prints to FILE
    {"wait": PID}                     ->  its exit status, negative when a signal ended it
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

torch.set_num_threads(1)  # a fork has no threads but its own

import distill.training.pretrain  # noqa: E402
import distill.training.train  # noqa: E402, F401
from distill.cli.main import run  # noqa: E402


def start(argv: list[str], output: str) -> int:
    """Fork a command; return its process number."""
    process = os.fork()
    if process:
        return process
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    status = 1
    try:
        status = run(argv)
        sys.stdout.flush()
    finally:
        os._exit(status)


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = start(**request)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
