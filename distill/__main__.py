"""Lets `python -m distill` (and torchrun) stand for the `distill` command."""

from distill.cli.main import main

if __name__ == "__main__":
    main()
