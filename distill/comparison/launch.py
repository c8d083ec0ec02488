"""Starts the process of one run and tells it when to stop; see `distill.comparison.child`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from distill.comparison.child import Request

_POLL = 0.2  # seconds between looks at the clock and at signals


def launch_process(
    request: Request, should_stop: Callable[[], bool], environment: Mapping[str, str]
) -> int:
    """Run one cell in a process of its own; return its exit status.

    Args:
        request: What to run.
        should_stop: Whether the process is to be told to stop; an error ends it at once.
        environment: What the process has beyond our own environment.
    """
    command = [sys.executable, "-m", "distill.comparison.child"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    assert process.stdin is not None
    try:
        process.stdin.write(request.line())
        process.stdin.flush()
        is_told = False
        while process.poll() is None:
            if should_stop() and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            time.sleep(_POLL)
    except BrokenPipeError:
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
    assert process.returncode is not None
    return process.returncode
