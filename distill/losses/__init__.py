"""Losses: one file per method."""

from distill.losses.compress import CompRess

__all__ = ["CompRess"]
