"""Compares methods on a grid; `distill.comparison.compare` is where it starts."""
