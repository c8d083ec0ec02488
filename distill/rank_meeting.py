"""How the ranks of one start find each other in a store that outlives them.

torchrun keeps one store of keys for a job and starts its processes again after a failure. From
PyTorch 2.5 on the new processes find the old ones' keys there, so that a rank may read the address
that a dead one left: it is refused, or the others wait for it. Of 31 restarts of two ranks 13
failed. The restarts' number (`TORCHELASTIC_RESTART_COUNT`) cannot tell the starts apart, because
every machine counts its own. So the ranks agree on keys that nobody has used before.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_PAUSE = 0.05  # seconds between two looks of the first rank at who has come


def launcher_store(timeout: timedelta) -> dist.Store | None:
    """Return the store that torchrun keeps for this job; None when there is none.

    Args:
        timeout: How long to wait for it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timeout)


def meet(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> dist.Store:
    """Return a part of a store that only the ranks of this start use, when all have come.

    Every other rank leaves a name, a new one at every start, and the first rank answers to the name
    with where to meet. It answers to names of dead ranks as well, whose answers nobody reads, and
    goes on until it has seen every rank at the meeting place.

    Args:
        store: Seen by all of them, and by those before them.
        rank: Of this process.
        num_ranks: How many there are.
        timeout: How long to wait for the others.

    Raises:
        DistStoreError: The others have not come in time.
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
            raise dist.DistStoreError(f"ranks {sorted(missing)} have not come within {timeout}")
        for rank in missing:
            if store.check([_name_of(rank)]):
                store.set(_answer_to(store.get(_name_of(rank)).decode()), place)
        time.sleep(_PAUSE)
        missing = {rank for rank in missing if not store.check([_is_at(place, rank)])}


def _name_of(rank: int) -> str:
    return f"distill/name-of-{rank}"


def _answer_to(name: str) -> str:
    return f"distill/answer-to-{name}"


def _is_at(place: str, rank: int) -> str:
    return f"distill/{rank}-is-at-{place}"
