"""Compares methods on a grid; the entry point is `distill.comparison.compare`."""
