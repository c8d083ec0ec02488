import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distill import distributed
from distill.distributed import (
    all_gather_variable,
    launcher_store,
    own_rows,
    rendezvous,
    row_counts,
    scatter_sum,
)
from distill.errors import DistillError, UnknownNameError

RANKS = 2
B, D = 3, 2


def rows(rank: int) -> torch.Tensor:
    return torch.arange(B * D).reshape(B, D) + 100.0 * rank


def weights(rank: int, num_rows: int) -> torch.Tensor:
    """Return what a rank multiplies with, so that its loss and gradient are its own."""
    return torch.randn(num_rows, D, generator=torch.Generator().manual_seed(rank))


def _patience() -> timedelta:
    """Return how long this rank waits for the others in an exchange."""
    group = dist.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("cpu")).options._timeout


def exchange(folder: Path) -> dict[str, Any]:
    """Call everything once on this rank."""
    rank = distributed.rank()
    gathered_from = rows(rank).requires_grad_()
    gathered = distributed.all_gather(gathered_from)
    (gathered.square() * weights(rank, RANKS * B)).sum().backward()
    summed_from = rows(rank).requires_grad_()
    summed = distributed.all_reduce_sum(summed_from)
    (summed.square() * weights(rank, B)).sum().backward()
    return {
        "place": (rank, distributed.world_size(), distributed.is_main()),
        "patience": _patience(),
        "gathered": gathered.detach(),
        "gathered.grad": gathered_from.grad,
        "transposed": distributed.all_gather(rows(rank).t()),
        "indices": distributed.all_gather(torch.tensor([rank, rank + 10])),
        "summed": summed.detach(),
        "summed.grad": summed_from.grad,
        "untouched": torch.equal(summed_from.detach(), rows(rank)),
        "mean": distributed.mean_over_ranks(rank + 0.1),
        "any": [distributed.any_rank(flag) for flag in (rank == 1, rank == 0, False, True)],
        "names": distributed.all_gather_set({"both", f"rank {rank}"}),
        "numbers": distributed.all_gather_set({rank, 7}),
        "refused": refused_by_main(),
        "from main": distributed.broadcast_from_rank0(lambda: {"of": distributed.rank()}),
        "waited": arrives_last(folder, rank),
    }


def refuse() -> None:
    raise UnknownNameError("color", "red", ["green"])  # its constructor takes no message


def refused_by_main() -> str:
    with pytest.raises(DistillError) as caught:
        distributed.broadcast_from_rank0(refuse)
    return str(caught.value)


def arrives_last(folder: Path, rank: int) -> bool:
    """Return whether rank 0, which comes late to a barrier, was waited for."""
    if rank == 0:
        time.sleep(0.3)
        (folder / "late").touch()
    distributed.barrier()
    return (folder / "late").exists()


def break_on_one_rank() -> None:
    if distributed.rank() == 1:
        raise KeyError("a mistake of rank 1")
    distributed.barrier()


@pytest.mark.ddp
def test_two_ranks_exchange_values_and_gradients(run_ranks, tmp_path):
    results = run_ranks(exchange, RANKS, tmp_path)
    all_rows = torch.cat([rows(rank) for rank in range(RANKS)])
    of_losses = 2 * all_rows * sum(weights(rank, RANKS * B) for rank in range(RANKS))
    total = sum(rows(rank) for rank in range(RANKS))
    of_sums = 2 * total * sum(weights(rank, B) for rank in range(RANKS))
    for rank, result in enumerate(results):
        assert result["place"] == (rank, RANKS, rank == 0)
        assert result["patience"] == distributed.EXCHANGE_TIMEOUT  # not that of connecting
        assert torch.equal(result["gathered"], all_rows)
        wanted = of_losses[rank * B : (rank + 1) * B]
        torch.testing.assert_close(result["gathered.grad"], wanted)
        assert torch.equal(result["transposed"], torch.cat([rows(0).t(), rows(1).t()]))
        assert result["indices"].tolist() == [0, 10, 1, 11]
        assert torch.equal(result["summed"], total)
        torch.testing.assert_close(result["summed.grad"], of_sums)
        assert result["untouched"]
        assert result["mean"] == pytest.approx(0.6)
        assert result["any"] == [True, True, False, True]
        assert result["names"] == {"both", "rank 0", "rank 1"}
        assert result["numbers"] == {0, 1, 7}
        assert result["from main"] == {"of": 0}
        assert result["refused"] == "unknown color 'red': known: green"
        assert result["waited"]


@pytest.mark.ddp
def test_a_rank_that_fails_is_heard_and_not_waited_for(run_ranks):
    with pytest.raises(pytest.fail.Exception, match="KeyError: 'a mistake of rank 1'"):
        run_ranks(break_on_one_rank, RANKS)


def test_one_process_needs_no_start():
    tensor = torch.randn(2, 3, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main()
    assert torch.equal(distributed.all_gather(tensor), tensor)
    assert torch.equal(distributed.all_reduce_sum(tensor), tensor)
    assert distributed.mean_over_ranks(0.3) == 0.3
    assert [distributed.any_rank(flag) for flag in (True, False)] == [True, False]
    assert distributed.all_gather_set({"a"}) == {"a"}
    assert distributed.broadcast_from_rank0(lambda: "a") == "a"
    assert distributed.num_local_ranks() == 1
    distributed.barrier()
    distributed.stop()


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_rank_starts_nothing(monkeypatch, world_size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    distributed.start(torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def test_a_world_size_that_is_not_torchruns_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        DistillError, match="WORLD_SIZE is 2 but RANK and LOCAL_RANK and MASTER_ADDR"
    ):
        distributed.start(torch.device("cpu"))


def test_more_ranks_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(DistillError, match="rank 1 needs CUDA device 1 and this machine has 1"):
        distributed.start(torch.device("cuda"))


@pytest.fixture
def chosen(monkeypatch):
    """Rank 7 of 8, third of its machine, up to the process group, which needs the devices."""
    devices = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: devices.append(backend)
    )
    for variable, value in {"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return devices


def test_a_rank_takes_the_device_of_its_number(chosen):
    assert distributed.start(torch.device("cuda")) == torch.device("cuda", 3)
    assert chosen == [3, "nccl"]


def test_one_device_for_all_ranks_is_refused(chosen):
    with pytest.raises(DistillError, match="cuda:1 would put all processes on one device"):
        distributed.start(torch.device("cuda:1"))
    assert chosen == []


COUNTS = [2, 0, 3]


def variable_rows(rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.arange(COUNTS[rank] * 2).reshape(-1, 2) + 100 * rank).to(dtype)


def partial_sums(rank: int) -> torch.Tensor:
    return torch.randn(sum(COUNTS), 4, generator=torch.Generator().manual_seed(rank))


def exchange_variable() -> dict[str, Any]:
    rank = distributed.rank()
    mine = variable_rows(rank).requires_grad_()
    sums = partial_sums(rank)
    return {
        "counts": row_counts(COUNTS[rank]),
        "own": own_rows(COUNTS),
        "gathered": all_gather_variable(mine, COUNTS),
        "strided": all_gather_variable(variable_rows(rank).t().contiguous().t(), COUNTS),
        "indices": all_gather_variable(variable_rows(rank, torch.int64)[:, 0], COUNTS),
        "summed": scatter_sum(sums, COUNTS),
        "untouched": torch.equal(sums, partial_sums(rank)),
    }


@pytest.mark.ddp
def test_unequal_rows_are_gathered_and_summed_in_order(run_ranks):
    everything = torch.cat([variable_rows(rank) for rank in range(3)])
    total = sum(partial_sums(rank) for rank in range(3))
    for rank, result in enumerate(run_ranks(exchange_variable, 3)):
        assert result["counts"] == COUNTS
        assert torch.equal(everything[result["own"]], variable_rows(rank))
        assert torch.equal(result["gathered"], everything)
        assert not result["gathered"].requires_grad
        assert torch.equal(result["strided"], everything)
        assert torch.equal(result["indices"], everything[:, 0].long())
        torch.testing.assert_close(result["summed"], total[result["own"]])
        assert result["untouched"]


def test_one_process_has_all_rows():
    tensor = torch.randn(3, 2)
    assert row_counts(3) == [3]
    assert own_rows([3]) == slice(0, 3)
    assert all_gather_variable(tensor, [3]) is tensor
    assert scatter_sum(tensor, [3]) is tensor


NUM_STARTED = 3
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
        place = rendezvous(client(port), rank, NUM_STARTED, LONG)
        if rank == 0:
            time.sleep(0.2)  # a rank that reads a former start's key does not wait for it
            place.set("address", str(delays))
        return place.get("address")

    with ThreadPoolExecutor(NUM_STARTED) as pool:
        return list(pool.map(one, range(NUM_STARTED)))


def test_every_start_has_keys_of_its_own_whoever_comes_last(port):
    for delays in ([0.0, 0.0, 0.0], [0.3, 0.0, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.3]):
        assert begin(port, delays) == [str(delays).encode()] * NUM_STARTED


def test_a_start_that_died_before_all_had_come_is_not_mistaken_for_this_one(port):
    with pytest.raises(
        dist.DistStoreError, match=r"ranks \[1, 2\] have not joined within 0:00:00.3"
    ):
        rendezvous(client(port), 0, NUM_STARTED, SOON)
    for rank in (1, 2):
        with pytest.raises(dist.DistStoreError):
            rendezvous(client(port), rank, NUM_STARTED, SOON)
    assert begin(port, [0.0, 0.4, 0.2]) == [b"[0.0, 0.4, 0.2]"] * NUM_STARTED


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
