"""Anchors: the embeddings that a batch is compared with, of recent images or of all."""

from distill.anchors.dataset import DatasetAnchors
from distill.anchors.memory import AnchorMemory
from distill.anchors.queue import AnchorQueue, Anchors

__all__ = ["AnchorMemory", "AnchorQueue", "Anchors", "DatasetAnchors"]
