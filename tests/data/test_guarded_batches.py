"""A loader process that dies ends the pass with one sentence; everything else passes through."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import resource_sharer
from multiprocessing.connection import Listener

import pytest
from torch.utils.data import DataLoader

from distill.data.workers import guarded_batches
from distill.errors import DistillError, LoaderDiedError

KILLED = "DataLoader worker (pid 77) is killed by signal: Killed. Details are lost due to ..."
EXITED = "DataLoader worker (pid(s) 77, 78) exited unexpectedly"


def failing(error: Exception):
    yield 0
    raise error


@pytest.mark.parametrize(
    ("message", "sentence"),
    [(KILLED, r"\(process 77\) died of Killed; look for"), (EXITED, r"\(process 77, 78\) died;")],
)
def test_a_dead_loader_is_named_with_the_remedy(message, sentence):
    with pytest.raises(LoaderDiedError, match=sentence) as caught:
        list(guarded_batches(lambda: failing(RuntimeError(message))))
    assert "--resume" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), ConnectionResetError("of a disk")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error), match=str(error)):
        list(guarded_batches(lambda: failing(error)))


@pytest.mark.parametrize("answers", [True, False])
def test_a_connection_that_a_dying_loader_ends_is_its_death(answers):
    """PyTorch raises the bare error while the process still counts as alive."""
    memory = resource_sharer.DupFd(0)

    def batches():
        yield 0
        with Listener(family="AF_UNIX") as dying:
            memory._id = (dying.address, 1)
            if answers:
                threading.Thread(target=lambda: dying.accept().close()).start()
                memory.detach()
        memory.detach()

    with pytest.raises(LoaderDiedError, match="a process that loads images died"):
        list(guarded_batches(batches))


def stop_oneself(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)


def test_a_stop_does_not_reach_loaders_that_are_only_starting():
    def loader():
        return DataLoader(range(4), batch_size=1, num_workers=2, worker_init_fn=stop_oneself)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert [int(batch) for batch in guarded_batches(loader)] == [0, 1, 2, 3]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_images_that_cannot_be_pickled_are_refused_with_the_remedy():
    def loader():
        return DataLoader([lambda: 0], num_workers=1, multiprocessing_context="spawn")

    with pytest.raises(DistillError, match=r"cannot be sent to the processes .*--num-workers 0"):
        list(guarded_batches(loader))
