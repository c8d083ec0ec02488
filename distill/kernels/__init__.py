"""The anchor KL: one loss, several implementations, one result."""

from distill.kernels.anchor_kl import IMPLEMENTATIONS, anchor_kl

__all__ = ["IMPLEMENTATIONS", "anchor_kl"]
