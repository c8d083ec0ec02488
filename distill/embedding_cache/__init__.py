"""Embeddings on disk: one memory-mapped row an image, checksummed, resumable.

The package stores and checks rows; it knows no networks. `distill.evaluation.cached` fills it.
"""

from distill.embedding_cache.store import EmbeddingStore
from distill.embedding_cache.table import EmbeddingTable, SelectedRows, open_table

__all__ = ["EmbeddingStore", "EmbeddingTable", "SelectedRows", "open_table"]
