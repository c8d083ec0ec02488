"""Distributed training with torchrun: thin functions over `torch.distributed`.

All functions also work in a single process without torchrun. Collective operations are called on
every rank, in the same order.

Gradients of `all_gather`, `all_reduce_sum` and `all_gather_variable_with_gradient` are those of the
sum of all ranks' losses. DistributedDataParallel divides the gradients of the parameters by the
number of ranks W, so that the network gets the gradient of the global mean if every rank returns
the global mean, or the mean over its own rows with equal batches.
`torch.distributed.nn.functional` has two of these operations and is deprecated.

Unequal numbers of rows: backends exchange tensors of one shape, so rows are padded to the largest
number on any rank. The numbers (`row_counts`) are exchanged once per batch.

Rendezvous: torchrun keeps one key-value store for a job and restarts its processes after a failure.
From PyTorch 2.5 on the new processes see the keys of the old ones, so that a rank may read the
address of a dead rank; of 31 restarts of two ranks 13 failed. `TORCHELASTIC_RESTART_COUNT` does not
identify a start, because every machine counts its own. So the ranks agree on new keys.

Shapes: W ranks, b rows on this rank, B rows on all ranks together.
"""

from __future__ import annotations

import inspect
import os
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from distill.errors import DistillError

T = TypeVar("T")

# The other ranks wait while rank 0 evaluates, which takes hours on large sets. If a rank dies,
# torchrun ends all of them.
EXCHANGE_TIMEOUT = timedelta(days=1)
# Gloo connects when it starts. An elastic launcher restarts a rank that times out.
CONNECT_TIMEOUT = timedelta(minutes=3)


def start(device: torch.device) -> torch.device:
    """Join the ranks that torchrun started, over NCCL for CUDA and gloo for a CPU.

    Does nothing without torchrun (WORLD_SIZE unset or 1).

    Returns:
        The device of this rank; for CUDA that of LOCAL_RANK.

    Raises:
        DistillError: WORLD_SIZE is not from torchrun, there are too few devices, or `device` is one
            CUDA device for all ranks.
    """
    if launched_size() == 1:
        return device
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise DistillError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {' and '.join(missing)} not set; start "
            "several processes with torchrun, or unset WORLD_SIZE for one"
        )
    if device.type == "cuda":
        device = _local_device(device)
        dist.init_process_group("nccl", timeout=EXCHANGE_TIMEOUT, **_rendezvous_options())
        return device
    dist.init_process_group("gloo", timeout=CONNECT_TIMEOUT, **_rendezvous_options())
    dist.distributed_c10d._set_pg_timeout(EXCHANGE_TIMEOUT)  # no public equivalent
    return device


def _local_device(device: torch.device) -> torch.device:
    if ":" in str(device):
        raise DistillError(
            f"--device {device} would put all processes on one device; use --device cuda"
        )
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise DistillError(
            f"rank {os.environ['RANK']} needs CUDA device {index} and this machine has "
            f"{torch.cuda.device_count()}; lower --nproc-per-node or use --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _rendezvous_options() -> dict[str, Any]:
    """Return the rendezvous arguments of `init_process_group`."""
    store = launcher_store(EXCHANGE_TIMEOUT)
    if store is None:
        return {}
    number, size = int(os.environ["RANK"]), launched_size()
    store = rendezvous(store, number, size, EXCHANGE_TIMEOUT)
    return {"store": store, "rank": number, "world_size": size}


def stop() -> None:
    """Destroy the process group, if any."""
    if _is_started():
        dist.destroy_process_group()


def release_others() -> None:
    """Exit on all ranks but rank 0, which continues alone.

    Raises:
        SystemExit: On the other ranks, with status 0.
    """
    if world_size() == 1:
        return
    is_first = is_main()
    barrier()
    stop()
    if not is_first:
        raise SystemExit(0)


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if _is_started() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _is_started() else 1


def launched_size() -> int:
    """Return how many processes torchrun started, also before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_ranks() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _is_started() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which writes files and messages, also before `start`."""
    if _is_started() or launched_size() == 1:
        return rank() == 0
    return os.environ.get("RANK", "0") == "0"


def _is_started() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a collective operation failed because another rank has ended."""
    if launched_size() == 1:
        return False
    words = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "NCCL")
    is_of_exchange = isinstance(error, dist.DistError) or any(w in str(error) for w in words)
    return isinstance(error, RuntimeError) and is_of_exchange


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `module`, which is on `device`, in DistributedDataParallel; a no-op with one rank."""
    if world_size() == 1:
        return module
    device_ids = [device] if device.type == "cuda" else None
    # Do not broadcast buffers at every step; the option has a new name from PyTorch 2.13 on.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"device_ids": device_ids, name: False}
    return DistributedDataParallel(module, **options)


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks; differentiable.

    Args:
        tensor: (b, ...), of the same shape and dtype on every rank.

    Returns:
        (W * b, ...), the same on every rank. The gradient of `tensor` is the sum over all ranks.
    """
    return tensor if world_size() == 1 else _AllGather.apply(tensor)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks; differentiable.

    The tensor has the same shape on every rank, and its gradient is the sum over all ranks.
    """
    return tensor if world_size() == 1 else _AllReduceSum.apply(tensor)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty((world_size(), *tensor.shape))
        dist.all_gather(list(gathered.unbind()), tensor.contiguous())
        return gathered.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return _summed(upstream).chunk(world_size())[rank()]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return _summed(upstream)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: float) -> float:
    """Return the mean of a value over the ranks."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=exchange_device())
    dist.all_reduce(total)
    return total.item() / world_size()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank."""
    if world_size() == 1:
        return flag
    highest = torch.tensor(int(flag), device=exchange_device())
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return bool(highest.item())


def all_gather_set(values: set[T]) -> set[T]:
    """Return the union of the ranks' sets."""
    if world_size() == 1:
        return values
    of_ranks: list[set[T]] = [set()] * world_size()
    dist.all_gather_object(of_ranks, values)
    return set().union(*of_ranks)


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Call `compute` on rank 0 and return its result, which must be picklable, on every rank.

    Raises:
        DistillError: On every rank, if `compute` raised it.
    """
    if world_size() == 1:
        return compute()
    shared: list[Any] = [None, None]
    error: DistillError | None = None
    if is_main():
        try:
            shared[0] = compute()
        except DistillError as raised:
            error, shared[1] = raised, str(raised)
    dist.broadcast_object_list(shared)
    if shared[1] is not None:
        raise error or DistillError(shared[1])
    return cast(T, shared[0])


def exchange_device() -> torch.device:
    """Return the device of tensors for collective operations."""
    is_nccl = _is_started() and dist.get_backend() == "nccl"
    return torch.device("cuda" if is_nccl else "cpu")


def barrier() -> None:
    """Wait for all ranks."""
    any_rank(False)  # dist.barrier has to guess the device of a rank under NCCL


def row_counts(num_rows: int) -> list[int]:
    """Return the number of rows of every rank, in the order of the ranks."""
    count = torch.tensor([num_rows], device=exchange_device())
    return all_gather(count).tolist()


def own_rows(counts: Sequence[int]) -> slice:
    """Return the slice of this rank's rows among those of all ranks."""
    first = sum(counts[: rank()])
    return slice(first, first + counts[rank()])


def all_gather_variable(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks.

    Args:
        rows: (b, ...), of the same dtype and trailing shape on every rank; b may be 0.
        counts: b of every rank, at least one above 0.

    Returns:
        (B, ...), the same on every rank; `rows` itself with one rank.
    """
    return rows if len(counts) == 1 else all_gather_variable_with_gradient(rows.detach(), counts)


def all_gather_variable_with_gradient(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks as `all_gather_variable`; differentiable.

    The gradient of `rows` is the sum over all ranks: for a loss of all rows that is the same on
    every rank, W times its gradient, which DistributedDataParallel divides by W.
    """
    if len(counts) == 1:
        return rows
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    parts = all_gather(torch.cat([rows, padding])).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def scatter_sum(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum over the ranks; return the sums of this rank's rows.

    Args:
        rows: (B, ...), of the same shape and dtype on every rank.
        counts: b of every rank, at least one above 0.

    Returns:
        (b, ...); `rows` itself with one rank.
    """
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(len(counts), max(counts), *rows.shape[1:])
    for space, part in zip(padded, rows.split(list(counts)), strict=True):
        space[: len(part)] = part
    sums = torch.empty_like(padded[0])
    # The operation has a new name in newer versions of PyTorch. gloo supports only equal parts.
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(sums, padded.flatten(0, 1))
    return sums[: counts[rank()]]


_POLL_SECONDS = 0.05  # between two checks of rank 0 for the others


def launcher_store(timeout: timedelta) -> dist.Store | None:
    """Return torchrun's key-value store for this job; None if there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timeout)


def rendezvous(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> dist.Store:
    """Return a part of a store that only the ranks of this start use, once all have joined.

    Every other rank writes a unique name, and rank 0 answers each name with the prefix to use. It
    also answers the names of dead ranks, which nobody reads, until every rank has confirmed.

    Args:
        store: Shared by all ranks, including those of earlier starts.
        rank: Of this process.
        num_ranks: Their number.
        timeout: For the other ranks to join.

    Raises:
        DistStoreError: A rank has not joined in time.
    """
    name = uuid.uuid4().hex
    if rank == 0:
        _answer(store, name, set(range(1, num_ranks)), timeout)
        return dist.PrefixStore(name, store)
    store.set(_name_of(rank), name)
    store.wait([_answer_to(name)], timeout)
    place = store.get(_answer_to(name)).decode()
    store.set(_is_at(place, rank), "")
    return dist.PrefixStore(place, store)


def _answer(store: dist.Store, place: str, missing: set[int], timeout: timedelta) -> None:
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(missing)} have not joined within {timeout}")
        for rank in missing:
            if store.check([_name_of(rank)]):
                store.set(_answer_to(store.get(_name_of(rank)).decode()), place)
        time.sleep(_POLL_SECONDS)
        missing = {rank for rank in missing if not store.check([_is_at(place, rank)])}


def _name_of(rank: int) -> str:
    return f"distill/name-of-{rank}"


def _answer_to(name: str) -> str:
    return f"distill/answer-to-{name}"


def _is_at(place: str, rank: int) -> str:
    return f"distill/{rank}-is-at-{place}"
