"""Worker processes: how many, whether their batches fit, and what happens when one dies."""

import os
import shutil
import signal
import threading
from multiprocessing import resource_sharer
from multiprocessing.connection import Listener
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from distill import distributed
from distill.data import workers
from distill.data.images import ArrayImages, FolderImages
from distill.data.workers import (
    default_num_workers,
    guarded_batches,
    num_usable_cores,
    require_shared_memory,
)
from distill.errors import DistillError, LoaderDiedError

KILLED = "DataLoader worker (pid 77) is killed by signal: Killed. Details are lost due to ..."
EXITED = "DataLoader worker (pid(s) 77, 78) exited unexpectedly"


def test_default_workers(monkeypatch):
    small = ArrayImages(np.zeros((9, 2, 2), np.uint8), name="small")
    files = FolderImages("/photos", ["a.png"], name="files")
    assert default_num_workers(small) == 0
    for cores, ranks, expected in ((64, 1, 8), (3, 1, 3), (3, 2, 1), (3, 4, 1)):
        monkeypatch.setattr(workers, "num_usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(distributed, "num_local_ranks", lambda ranks=ranks: ranks)
        assert default_num_workers(files) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_usable_cores_follow_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert num_usable_cores() == 3


@pytest.mark.parametrize(
    ("batch_size", "sizes", "num_workers", "num_processes", "fits"),
    [
        (256, [224], 0, 8, True),
        (64, [224], 2, 1, True),  # 6 batches of 9.2 MiB
        (64, [224], 3, 1, False),  # 8 of them
        (64, [224], 1, 2, False),  # 4 for each of two
        (64, [224, 64], 2, 1, True),  # 6 of 9.9
        (64, [224, 224], 2, 1, False),
    ],
)
def test_batches_must_fit_into_shared_memory(
    batch_size, sizes, num_workers, num_processes, fits, monkeypatch, tmp_path
):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=64 * 2**20))
    monkeypatch.setattr(workers, "_SHARED_MEMORY", tmp_path / "absent")
    require_shared_memory(batch_size, sizes, num_workers, num_processes=num_processes)
    monkeypatch.setattr(workers, "_SHARED_MEMORY", tmp_path)
    if fits:
        require_shared_memory(batch_size, sizes, num_workers, num_processes=num_processes)
        return
    with pytest.raises(DistillError, match=r"MiB at a time and .* has 64 MiB left; lower --num-w"):
        require_shared_memory(batch_size, sizes, num_workers, num_processes=num_processes)


def failing(error: Exception):
    yield 0
    raise error


@pytest.mark.parametrize(
    ("message", "sentence"),
    [(KILLED, r"\(process 77\) died of Killed; look for"), (EXITED, r"\(process 77, 78\) died;")],
)
def test_a_dead_worker_is_named_with_the_remedy(message, sentence):
    with pytest.raises(LoaderDiedError, match=sentence) as caught:
        list(guarded_batches(lambda: failing(RuntimeError(message))))
    assert "--resume" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), ConnectionResetError("of a disk")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error), match=str(error)):
        list(guarded_batches(lambda: failing(error)))


@pytest.mark.parametrize("answers", [True, False])
def test_a_connection_that_a_dying_worker_ends_is_its_death(answers):
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


def test_a_stop_does_not_reach_workers_that_are_only_starting():
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
