"""Anchors: the embeddings of recent images that a batch is compared with."""

from distill.anchors.queue import AnchorQueue, Anchors

__all__ = ["AnchorQueue", "Anchors"]
