"""The training loop and what it needs: optimizer, momentum copy, checkpoints, run directory."""
