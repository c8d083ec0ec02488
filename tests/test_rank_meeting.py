"""Ranks that start in a store of a former start do not read what that one left."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from distill.distributed import launcher_store, rendezvous

RANKS = 3
SOON, LONG = timedelta(seconds=0.3), timedelta(seconds=60)


@pytest.fixture
def port() -> Iterator[int]:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield server.port
    del server


def client(port: int) -> dist.Store:
    return dist.TCPStore("127.0.0.1", port, is_master=False)


def begin(port: int, delays: list[float]) -> list[bytes]:
    """Return what every rank reads that the first wrote after they met."""

    def one(rank: int) -> bytes:
        time.sleep(delays[rank])
        place = rendezvous(client(port), rank, RANKS, LONG)
        if rank == 0:
            time.sleep(0.2)  # a rank that reads a former start's key does not wait for it
            place.set("address", str(delays))
        return place.get("address")

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(one, range(RANKS)))


def test_every_start_has_keys_of_its_own_whoever_comes_last(port):
    for delays in ([0.0, 0.0, 0.0], [0.3, 0.0, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.3]):
        assert begin(port, delays) == [str(delays).encode()] * RANKS


def test_a_start_that_died_before_all_had_come_is_not_mistaken_for_this_one(port):
    with pytest.raises(dist.DistStoreError, match=r"ranks \[1, 2\] have not come within 0:00:00.3"):
        rendezvous(client(port), 0, RANKS, SOON)
    for rank in (1, 2):
        with pytest.raises(dist.DistStoreError):
            rendezvous(client(port), rank, RANKS, SOON)
    assert begin(port, [0.0, 0.4, 0.2]) == [b"[0.0, 0.4, 0.2]"] * RANKS


def test_one_rank_waits_for_nobody(port):
    rendezvous(client(port), 0, 1, timedelta(0)).set("key", "value")


def test_the_launchers_store_is_used_where_there_is_one(port, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert launcher_store(SOON) is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    client(port).set("left by", "another")
    assert launcher_store(LONG).get("left by") == b"another"
