"""Embeddings of images: made by a network, kept on disk, searched."""
