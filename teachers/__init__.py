"""The large networks: frozen for good, described as data, read from published files."""

import distill.torchvision_wheel  # noqa: F401  (before anything imports torchvision)
from teachers.registry import TEACHERS, load_teacher

__all__ = ["TEACHERS", "load_teacher"]
