"""Every batch comes once, however often loaders die."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import resource_sharer
from multiprocessing.connection import Listener

import pytest
from torch.utils.data import DataLoader

from distill.data.lasting_batches import lasting_batches
from distill.errors import DistillError

KILLED = "DataLoader worker (pid 77) is killed by signal: Killed. Details are lost due to ..."
EXITED = "DataLoader worker (pid(s) 77, 78) exited unexpectedly"


def consume(deaths: list[tuple[int, str]], num_batches: int = 10) -> tuple[list[int], list[int]]:
    """Return the batches that came and where the loaders started."""
    starts, deaths = [], list(deaths)

    def make(done: int):
        starts.append(done)
        for number in range(done, num_batches):
            if deaths and deaths[0][0] == number:
                raise RuntimeError(deaths.pop(0)[1])
            yield number

    return list(lasting_batches(make)), starts


@pytest.mark.parametrize(
    ("deaths", "starts", "words"),
    [
        ([], [0], []),
        ([(4, KILLED)], [0, 4], ["(process 77) died of Killed; new ones are started, 3 times"]),
        ([(0, EXITED), (0, EXITED)], [0, 0, 0], ["(process 77, 78) died; new ones are started"]),
        ([(2, KILLED), (3, EXITED), (9, KILLED)], [0, 2, 3, 9], ["once more"]),
    ],
)
def test_every_batch_comes_once(deaths, starts, words, capsys):
    assert consume(deaths) == (list(range(10)), starts)
    said = capsys.readouterr().out
    assert said.count("warning: a process that loads images") == len(deaths)
    for one in words:
        assert one in said


def test_the_fourth_death_ends_the_run():
    with pytest.raises(DistillError, match="died of Killed, and so did others before; look for"):
        consume([(1, KILLED)] * 4)


def test_other_errors_are_none_of_its_business():
    with pytest.raises(RuntimeError, match="CUDA"):
        consume([(1, "CUDA error")])


@pytest.mark.parametrize("answers", [True, False])
def test_a_connection_that_a_dying_loader_ends_is_its_death(answers, capsys):
    """PyTorch raises the bare error while the process still counts as alive."""
    memory = resource_sharer.DupFd(0)
    deaths = [4]

    def make(done: int):
        for number in range(done, 10):
            if number in deaths:
                deaths.remove(number)
                with Listener(family="AF_UNIX") as dying:
                    memory._id = (dying.address, 1)
                    if answers:
                        threading.Thread(target=lambda: dying.accept().close()).start()
                        memory.detach()
                memory.detach()
            yield number

    assert list(lasting_batches(make)) == list(range(10))
    assert "a process that loads images died; new ones" in capsys.readouterr().out


def test_other_lost_connections_are_none_of_its_business():
    def make(done: int):
        yield done
        raise ConnectionResetError("of a file system")

    with pytest.raises(ConnectionResetError):
        list(lasting_batches(make))


def stop_oneself(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)


def test_a_stop_does_not_reach_loaders_that_are_only_starting(capsys):
    def make(done: int):
        return DataLoader(range(done, 4), batch_size=1, num_workers=2, worker_init_fn=stop_oneself)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert [int(batch) for batch in lasting_batches(make)] == [0, 1, 2, 3]
    assert "died" not in capsys.readouterr().out
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
