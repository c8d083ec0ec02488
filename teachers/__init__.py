"""The large networks: frozen for good, described as data, read from published files."""

import distill.torchvision_wheel  # noqa: F401  (before anything imports torchvision)
from teachers.load import load_teacher
from teachers.registry import TEACHERS, teacher_spec
from teachers.trained import load_trained

__all__ = ["TEACHERS", "load_teacher", "load_trained", "teacher_spec"]
