"""Compares methods on a grid; `distill.jobs.comparison.job` is where it starts."""
