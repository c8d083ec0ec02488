"""Reads the weights files that networks are published in: one reader per format, strict, no code.

A file is opened as a `TensorFile`: names and shapes at once, tensors one at a time. Nothing in a
file is executed; what is damaged, cut short or of another kind is refused in one sentence.
"""

from distill.models.checkpoints.open import open_checkpoint
from distill.models.checkpoints.tensor_file import TensorFile

__all__ = ["TensorFile", "open_checkpoint"]
