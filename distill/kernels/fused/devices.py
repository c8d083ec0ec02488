"""What is known of GPUs before anything runs on them: published rates and sizes.

Sources: NVIDIA's data sheets of A100 80 GB SXM, H100 SXM, H200 SXM and HGX B200 (dense rates);
L2 capacities from the architecture white papers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distill.kernels.fused.plan import Dtype


@dataclass(frozen=True)
class Device:
    """A GPU on paper.

    Attributes:
        name: As people say it.
        capability: Compute capability.
        num_sms: Multiprocessors.
        bandwidth: Of device memory, bytes per second.
        tensor_rate: Dense bf16 and fp16 products, FLOP per second.
        float_rate: float32 without tensor cores, FLOP per second.
        l2_bytes: Capacity of the L2 cache.
    """

    name: str
    capability: tuple[int, int]
    num_sms: int
    bandwidth: float
    tensor_rate: float
    float_rate: float
    l2_bytes: int

    def rate(self, dtype: Dtype) -> float:
        """Return the FLOP per second of products of a dtype."""
        return self.float_rate if dtype == "fp32" else self.tensor_rate


DEVICES = {
    "A100": Device("A100", (8, 0), 108, 2.039e12, 312e12, 19.5e12, 40 << 20),
    "H100": Device("H100", (9, 0), 132, 3.35e12, 989.4e12, 66.9e12, 50 << 20),
    "H200": Device("H200", (9, 0), 132, 4.8e12, 989.4e12, 66.9e12, 50 << 20),
    "B200": Device("B200", (10, 0), 148, 8.0e12, 2250e12, 75e12, 126 << 20),
}


def find_device(name: str, capability: tuple[int, int]) -> Device:
    """Return the entry whose name is a word of `name`, as CUDA says it, else its generation's."""
    for known in DEVICES.values():
        if re.search(rf"\b{known.name}\b", name):
            return known
    return DEVICES["B200" if capability >= (10, 0) else "H100" if capability >= (9, 0) else "A100"]
