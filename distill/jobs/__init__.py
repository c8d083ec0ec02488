"""One file per job: what the command line and `import distill` both call."""
