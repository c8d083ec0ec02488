"""The quick start: distill the shipped teacher into AlexNet on scikit-learn's digits, and measure.

Ends with a table of nearest-neighbor accuracy and cluster alignment for the teacher, the student
before and after training, and the raw pixels, and a sentence on whether training helped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import distill
from distill.cli.command import print_table
from distill.config import ImageOptions
from distill.data.sources import open_images, training_images
from distill.evaluation.standard import standard_metrics
from distill.training.setup import embedder_of
from teachers.load import load_teacher

MEASURES = ("nn_accuracy", "cluster_alignment")
NAMES = ("nearest neighbor", "cluster alignment")


def measured_pixels() -> dict[str, float]:
    """Return both measures of the digits' bare 64 pixels."""
    images = training_images(open_images("digits"), ImageOptions(holdout=0.0), seed=0)
    embedder = embedder_of(images, device=torch.device("cpu"), precision="fp32", num_workers=0)
    return standard_metrics(*embedder.embed_both(load_teacher("pixels"), what="raw pixels"))


def rows(metrics: Mapping[str, Any], pixels: Mapping[str, float]) -> list[list[str]]:
    """Return the table's rows: who, then both measures."""
    numbers = {
        "teacher digits-cbyol": [metrics[f"teacher_{name}"] for name in MEASURES],
        "student alexnet": [metrics[name] for name in MEASURES],
        "student, untrained": [metrics[f"untrained_{name}"] for name in MEASURES],
        "raw pixels": [pixels[name] for name in MEASURES],
    }
    return [[who, *(f"{value:.3f}" for value in values)] for who, values in numbers.items()]


def verdict(metrics: Mapping[str, Any]) -> str:
    """Say whether the trained student is better than the untrained one, measure by measure."""
    parts = []
    for name, words in zip(MEASURES, NAMES, strict=True):
        gain = metrics[name] - metrics[f"untrained_{name}"]
        did = "raised" if gain > 0 else "did NOT raise"
        parts.append(f"{did} {words} ({gain:+.3f})")
    return f"Training {' and '.join(parts)}, compared with the untrained student."


def main() -> None:
    """Run the demonstration; a second run continues or repeats the numbers of the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    output = parser.parse_args().output
    metrics = distill.train(
        teacher="digits-cbyol",
        student="alexnet",
        data="digits",
        output=output,
        resume=(output / "config.yaml").exists(),
    ).metrics
    print()
    print_table(rows(metrics, measured_pixels()), header=["", *NAMES])
    print(f"\n{verdict(metrics)}")
    print(f"Everything is in {output}; `distill nn {output}` measures it again.")


if __name__ == "__main__":
    main()
