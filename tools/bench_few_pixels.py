"""Compare convolutions of few pixels with the matrix products that replace them, on this CPU.

    python tools/bench_few_pixels.py
    python tools/bench_few_pixels.py --threads 2 --precision fp32

A line for each layer: forward and backward of a batch, the best of several, both ways in turn. Then
a whole step (forward, backward, without an optimizer) of students at small images; AlexNet's also
with its one pixel copied 36 times, as torchvision does, and not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from distill.models.networks import build_network, prepare_for_device
from distill.models.small_convs import FewPixelConv2d, patch_small_convs
from students.alexnet import Pool
from students.registry import STUDENTS

# channels in, out, pixels on a side, stride: of ResNet-18 at 32, 64 and 96 px
LAYERS = [
    *((512, 512, 1, 1), (512, 512, 2, 1), (256, 512, 4, 2), (256, 256, 2, 1), (128, 256, 4, 2)),
    *((512, 512, 3, 1), (256, 512, 6, 2)),
]
STEPS = [("resnet18", 32), ("resnet18", 64), ("resnet18", 96), ("resnet50", 64), ("alexnet", 64)]
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    FewPixelConv2d: nn.Conv2d,
    Pool: nn.AdaptiveAvgPool2d,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments; print a line for every layer and every student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="so many of them")
    parser.add_argument("--students", type=int, default=len(STEPS), help="so many of them")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print("what                          convolution ms  product ms  ratio")
    for channels, out, side, stride in LAYERS[: options.layers]:
        layer = nn.Conv2d(channels, out, 3, stride, 1).to(memory_format=torch.channels_last)
        x = torch.randn(options.batch_size, channels, side, side)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        compare(f"{channels} -> {out}, {side} px, / {stride}", layer, x, options)
    for name, side in STEPS[: options.students]:
        network = prepare_for_device(
            build_network(STUDENTS.get(name), image_size=side), torch.device("cpu")
        )
        images = torch.rand(options.batch_size, 3, side, side)
        compare(f"{name}, {side} px, a step", network, images, options)
    return 0


def compare(what: str, module: nn.Module, x: torch.Tensor, options: argparse.Namespace) -> None:
    """Print the times of a module as convolutions and as products, measured in turn."""
    patch_small_convs(module)
    layers = [(layer, type(layer)) for layer in module.modules() if type(layer) in PLAIN]
    best = [float("inf"), float("inf")]
    for _ in range(options.repeat + 1):  # the first of each warms up
        for way in range(2):
            for layer, quick in layers:
                layer.__class__ = quick if way else PLAIN[quick]
            best[way] = min(best[way], timed(lambda: step(module, x, options.precision)))
    plain, product = (1000 * seconds for seconds in best)
    print(f"{what:30}{plain:14.1f}  {product:10.1f}  {plain / product:5.2f}", flush=True)


def step(module: nn.Module, x: torch.Tensor, precision: str) -> None:
    """Run a module forward and backward."""
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = module(x)
    found.float().square().mean().backward()


def timed(call: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
