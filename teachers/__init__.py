"""Teachers: frozen networks described as data and loaded from published files."""

from teachers import byol, c_byol, c_simclr, simclr  # registers them
from teachers.load import load_teacher, load_trained
from teachers.registry import TEACHERS, teacher_spec

__all__ = [
    "TEACHERS",
    "byol",
    "c_byol",
    "c_simclr",
    "load_teacher",
    "load_trained",
    "simclr",
    "teacher_spec",
]
