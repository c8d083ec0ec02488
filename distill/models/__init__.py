"""Embedding networks and readers of their weights."""
