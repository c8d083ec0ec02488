"""Several processes that train one network, started by torchrun: thin functions over PyTorch.

All of them are valid without torchrun too, where there is one rank and nothing to exchange. Every
rank has to call the ones that exchange, in the same order.

A gradient that crosses ranks is that of the sum of all ranks' losses. DistributedDataParallel
divides the parameters' gradients by the number of ranks, so that with equal local batches and a
loss that is the mean over the local rows the network receives the gradient of the global mean. It
does so too, whatever the local batches, where every rank returns the global mean itself.

Rows of which ranks have unequal numbers: `distill.row_exchange`.

`torch.distributed.nn.functional` has the same two operations; newer PyTorch deprecates them.

Shapes: B rows on every rank, W ranks.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from distill.errors import DistillError
from distill.rank_meeting import launcher_store, meet

Thing = TypeVar("Thing")

# The others wait while the first rank measures a network, which takes hours on large sets; a rank
# that died is not waited for, because torchrun ends them all.
PATIENCE = timedelta(days=1)
# Gloo connects when it starts. A rank that gives up is started again by an elastic launcher.
CONNECTING = timedelta(minutes=3)


def start(device: torch.device) -> torch.device:
    """Join the ranks that torchrun started, over NCCL for CUDA and gloo for a CPU.

    Without torchrun (WORLD_SIZE unset or 1) nothing happens. Gloo's ranks connect within
    `CONNECTING` when all have come, or the start fails; from then on `PATIENCE` counts.

    Returns:
        The device of this rank: `device`, but for CUDA the one of the rank (LOCAL_RANK).

    Raises:
        DistillError: When WORLD_SIZE does not come from torchrun, there are too few devices, or
            `device` is one CUDA device for all ranks.
    """
    if launched_size() == 1:
        return device
    _require_torchrun()
    if device.type == "cuda":
        device = _take_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, **_meeting())
        return device
    dist.init_process_group("gloo", timeout=CONNECTING, **_meeting())
    dist.distributed_c10d._set_pg_timeout(PATIENCE)  # there is no public name for it
    return device


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Return `module` with its gradients averaged over the ranks; itself with one rank.

    Args:
        module: On `device`, its BatchNorm synchronized already.
        device: Of this rank.
    """
    if world_size() == 1:
        return module
    device_ids = [device] if device.type == "cuda" else None
    # The name from PyTorch 2.13 on and the one before: no exchange of buffers at every step.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"device_ids": device_ids, name: False}
    return DistributedDataParallel(module, **options)


def stop() -> None:
    """Leave the other ranks."""
    if _is_started():
        dist.destroy_process_group()


def release_others() -> None:
    """End all ranks but the first, which goes on alone; where there is one, nothing happens.

    For what follows a pass that all share: the others would only repeat it.

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
    """Return the number of this process among all, from 0."""
    return dist.get_rank() if _is_started() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _is_started() else 1


def launched_size() -> int:
    """Return how many processes torchrun started, whether they have joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_ranks() -> int:
    """Return how many of the processes run on this machine and share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _is_started() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files and speaks to people.

    It is the same one before the ranks have joined and after they have left.
    """
    if _is_started() or launched_size() == 1:
        return rank() == 0
    return os.environ.get("RANK", "0") == "0"


def all_gather(tensor: Tensor) -> Tensor:
    """Put the rows of all ranks under each other, in the order of the ranks; differentiable.

    Args:
        tensor: (B, ...), of the same shape and dtype on every rank.

    Returns:
        (W * B, ...), the same on every rank. The gradient of `tensor` is the sum of the gradients
        that all ranks computed for its rows.
    """
    return tensor if world_size() == 1 else _AllGather.apply(tensor)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add a tensor up over the ranks; differentiable.

    Args:
        tensor: Any shape, the same on every rank.

    Returns:
        The sum, the same on every rank. The gradient of `tensor` is the sum of the gradients that
        all ranks computed for it.
    """
    return tensor if world_size() == 1 else _AllReduceSum.apply(tensor)


def mean_over_ranks(value: float) -> float:
    """Return the mean of the ranks' values, the same on every rank."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=exchange_device())
    dist.all_reduce(total)
    return total.item() / world_size()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on one rank at least, the same on every rank."""
    if world_size() == 1:
        return flag
    highest = torch.tensor(int(flag), device=exchange_device())
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return bool(highest.item())


def union(things: set[Thing]) -> set[Thing]:
    """Return the things (names, numbers) that any rank has, the same on every rank."""
    if world_size() == 1:
        return things
    of_ranks: list[set[Thing]] = [set()] * world_size()
    dist.all_gather_object(of_ranks, things)
    return set().union(*of_ranks)


def from_main(compute: Callable[[], Thing]) -> Thing:
    """Return what the first rank computes, the same on every rank; the others only wait.

    Args:
        compute: Called on the first rank; its result can be pickled.

    Raises:
        DistillError: What `compute` raised, on every rank: none is left waiting.
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
    return cast(Thing, shared[0])


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exchange failed because another rank has ended."""
    if launched_size() == 1:
        return False
    words = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "NCCL")
    is_of_exchange = isinstance(error, dist.DistError) or any(w in str(error) for w in words)
    return isinstance(error, RuntimeError) and is_of_exchange


def exchange_device() -> torch.device:
    """Return where a small tensor must lie to be exchanged."""
    is_nccl = _is_started() and dist.get_backend() == "nccl"
    return torch.device("cuda" if is_nccl else "cpu")


def barrier() -> None:
    """Wait until every rank has come here."""
    any_rank(False)  # dist.barrier has to guess the device of a rank under NCCL


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


def _is_started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _meeting() -> dict[str, Any]:
    store = launcher_store(PATIENCE)
    if store is None:
        return {}
    own, size = int(os.environ["RANK"]), launched_size()
    return {"store": meet(store, own, size, PATIENCE), "rank": own, "world_size": size}


def _require_torchrun() -> None:
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise DistillError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {' and '.join(missing)} not set; start "
            "several processes with torchrun, or unset WORLD_SIZE for one"
        )


def _take_device(device: torch.device) -> torch.device:
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
