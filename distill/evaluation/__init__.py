"""Measures embeddings: embed once, then pure functions of (embeddings, labels)."""
