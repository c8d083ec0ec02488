"""Freezes a network so that nothing that happens around it can change it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def freeze(network: Network) -> Network:
    """Freeze `network` in place: evaluation mode for good, no gradient to any parameter.

    A later `train()` on the network or on a module that contains it leaves it in evaluation mode.
    """
    network.eval().requires_grad_(False)
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    return network
