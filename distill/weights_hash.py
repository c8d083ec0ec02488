"""A hash that stands for the weights of a network."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of all weights and persistent buffers, in hexadecimal.

    It covers names, dtypes, shapes and values; device and memory order (channels last) do not
    matter. One tensor is copied at a time.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().reshape(-1)  # in the order of the indices, not of the memory
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.hexdigest()
