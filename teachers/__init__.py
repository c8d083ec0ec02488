"""The large networks: frozen for good, described as data, read from published files."""

from teachers.load import load_teacher, load_trained
from teachers.registry import TEACHERS, teacher_spec

__all__ = ["TEACHERS", "load_teacher", "load_trained", "teacher_spec"]
