"""The anchor KL loss and its implementations."""

from distill.kernels.anchor_kl import IMPLEMENTATIONS, anchor_kl

__all__ = ["IMPLEMENTATIONS", "anchor_kl"]
