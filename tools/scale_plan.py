"""Plan distillation at sizes that have not been run: bytes, hours, memory, and the bottleneck.

    python tools/scale_plan.py
    python tools/scale_plan.py --teacher r50x4 --student resnet18 --epochs 100 --cores 16

Everything follows from the rates in `RATES` and from counted bytes and operations; nothing is
measured here. A step takes as long as the slowest of what overlaps (compute, decoding, reading)
plus what does not (the anchors' loss, exchange between GPUs). docs/scale.md shows the output.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rates:
    """What one GPU and its share of a machine do.

    Attributes:
        flops: Of convolutions in bf16 per second, reached, not peak.
        matmul_flops: Of large bf16 products per second, reached.
        memory_bandwidth: Of the GPU, bytes per second.
        interconnect: Between GPUs of a machine, bytes per second and direction.
        network: Between machines, bytes per second and direction, for each GPU.
        storage: Bytes per second that a machine reads, for each GPU.
        decode: Images per second and core, JPEG to crop.
        gpus_per_machine: As named.
    """

    flops: float = 250e12
    matmul_flops: float = 500e12
    memory_bandwidth: float = 3.35e12
    interconnect: float = 300e9
    network: float = 40e9
    storage: float = 0.5e9
    decode: float = 150.0
    gpus_per_machine: int = 8


@dataclass(frozen=True)
class Network:
    """A network: operations of a forward pass of one image, parameters, width of its embedding."""

    flops: float
    parameters: float
    embedding_dim: int


@dataclass(frozen=True)
class Images:
    """A set of images: how many, and bytes each as stored."""

    number: int
    num_bytes: float


RATES = Rates()
NETWORKS = {  # at 224 px; a multiplication and an addition are two operations
    "r50": Network(8.2e9, 23.5e6, 2048),
    "r50x4": Network(130e9, 375.4e6, 8192),
    "resnet18": Network(3.6e9, 11.2e6, 512),
    "alexnet": Network(1.4e9, 57e6, 4096),
}
DATASETS = {
    "ImageNet-1k": Images(1_281_167, 110e3),
    "ImageNet-22k": Images(14_197_122, 92e3),
    "LAION-400M": Images(400_000_000, 25e3),
}
MAX_QUEUE = 128_000
ANCHOR_BYTES, CACHE_BYTES, GRADIENT_BYTES, ROW_BYTES = 2, 2, 4, 4


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        cache: Bytes of the teacher's embeddings on disk.
        teacher_hours: To make them, once.
        anchors: How many there are.
        bank: Bytes of anchors on each GPU.
        step: Seconds of each part of a step, by name.
        hours: Of training.
        saturated: The part that decides how long a step takes.
    """

    cache: float
    teacher_hours: float
    anchors: int
    bank: float
    step: dict[str, float]
    hours: float
    saturated: str


def plan(
    images: Images,
    teacher: Network,
    student: Network,
    *,
    num_gpus: int,
    epochs: int,
    batch_per_gpu: int = 256,
    anchors: int | None = None,
    cores_per_gpu: int = 16,
    rates: Rates = RATES,
) -> Plan:
    """Return what distilling with one queue takes.

    Args:
        images: That are trained on.
        teacher: Embeds each once.
        student: Trained through a linear layer to the teacher's width.
        num_gpus: W; the anchors are spread over them.
        epochs: Passes over the images.
        batch_per_gpu: B / W.
        anchors: K; None: all images up to 128,000, else a queue of so many.
        cores_per_gpu: That decode.
        rates: Of everything.
    """
    anchors = anchors or min(images.number, MAX_QUEUE)
    batch, width = batch_per_gpu * num_gpus, teacher.embedding_dim
    held = anchors / num_gpus
    of_loader = {
        "decoding": batch_per_gpu / (cores_per_gpu * rates.decode),
        "reading": batch_per_gpu * images.num_bytes / rates.storage,
    }
    # Forward and backward are three forward passes; so is the linear layer.
    passes = 3 * (student.flops + 2 * student.embedding_dim * width)
    several = num_gpus > rates.gpus_per_machine
    link = rates.network if several else rates.interconnect
    share = (num_gpus - 1) / num_gpus
    exchanged = 2 * share * student.parameters * GRADIENT_BYTES  # a ring's all-reduce
    exchanged += share * batch * width * ROW_BYTES * 3  # rows gathered twice, gradients scattered
    step = {
        "student": batch_per_gpu * passes / rates.flops,
        **of_loader,
        # Logits of teacher and student and the gradient; one bank is read twice.
        "loss": max(
            2 * batch * held * 3 * width / rates.matmul_flops,
            2 * held * width * ANCHOR_BYTES / rates.memory_bandwidth,
        ),
        "exchange": exchanged / link,
    }
    overlapping = ("student", "decoding", "reading")
    slowest = max(overlapping, key=lambda part: step[part])
    seconds = step[slowest] + step["loss"] + step["exchange"]
    saturated = max([slowest, "loss", "exchange"], key=lambda part: step[part])
    teacher_second = max(batch_per_gpu * teacher.flops / rates.flops, *of_loader.values())
    steps = images.number / batch
    return Plan(
        cache=images.number * width * CACHE_BYTES,
        teacher_hours=steps * teacher_second / 3600,
        anchors=anchors,
        bank=held * width * ANCHOR_BYTES,
        step=step,
        hours=epochs * steps * seconds / 3600,
        saturated=saturated,
    )


def shown_bytes(number: float) -> str:
    """Return bytes with a unit, decimal as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 1000 else f"{number:,.0f} TB"


def shown_hours(hours: float) -> str:
    """Return a time in minutes, hours or days."""
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:,.3g} days"


def row(name: str, images: Images, found: Plan, num_gpus: int) -> str:
    """Return a line of the table."""
    cells = [
        name,
        str(num_gpus),
        shown_bytes(images.number * images.num_bytes),
        shown_bytes(found.cache),
        shown_hours(found.teacher_hours),
        f"{found.anchors:,}",
        shown_bytes(found.bank),
        *(f"{1000 * found.step[part]:.1f}" for part in found.step),
        shown_hours(found.hours),
        found.saturated,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=list(NETWORKS), default="r50x4")
    parser.add_argument("--student", choices=list(NETWORKS), default="resnet18")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-per-gpu", type=int, default=256)
    parser.add_argument("--anchors", type=int, help="default: all images, at most 128,000")
    parser.add_argument("--cores", type=int, default=16, help="for each GPU")
    parser.add_argument("--decode", type=float, default=RATES.decode, help="images/s and core")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    options = parser.parse_args()
    head = [
        *("images", "GPUs", "images on disk", "teacher's embeddings", "teacher's pass", "anchors"),
        *("bank a GPU", "student, ms", "decoding, ms", "reading, ms", "loss, ms", "exchange, ms"),
        *("training", "slowest part"),
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, images in DATASETS.items():
        for num_gpus in options.gpus:
            found = plan(
                images,
                NETWORKS[options.teacher],
                NETWORKS[options.student],
                num_gpus=num_gpus,
                epochs=options.epochs,
                batch_per_gpu=options.batch_per_gpu,
                anchors=options.anchors,
                cores_per_gpu=options.cores,
                rates=replace(RATES, decode=options.decode),
            )
            print(row(name, images, found, num_gpus))


if __name__ == "__main__":
    main()
