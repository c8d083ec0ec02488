"""Readers of the formats of published weights: one per format, strict, without running code.

A file is opened as a `TensorFile`, with the names and shapes of its tensors, which are read one at
a time. Damaged, truncated and unknown files are refused.
"""

from distill.models.checkpoints.open import open_checkpoint
from distill.models.checkpoints.tensor_file import TensorFile

__all__ = ["TensorFile", "open_checkpoint"]
