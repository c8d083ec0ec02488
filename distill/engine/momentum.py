"""The momentum copy of the student: key <- m key + (1 - m) student after every step.

Source: He et al., MoCo, CVPR 2020; CompRess, NeurIPS 2020. Parameters only: the copy's BatchNorm
stays in train mode and keeps statistics of its own, as published.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MomentumCopy:
    """An exponential moving average of a network's parameters that can embed.

    Args:
        network: The network that is trained; the copy starts equal to it.
        momentum: m in [0, 1].
    """

    def __init__(self, network: nn.Module, *, momentum: float) -> None:
        self.momentum = momentum
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images; same shapes as the network's, no gradient."""
        return self.network(images)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the copy's parameters towards `network`'s."""
        copies: list[Tensor] = list(self.network.parameters())
        followed: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(copies, followed, 1 - self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and BatchNorm statistics."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state)
