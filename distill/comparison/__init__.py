"""Compares methods on a grid; `distill.comparison.job` is where it starts."""
