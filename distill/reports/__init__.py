"""Draws what was measured, for people to look at."""
