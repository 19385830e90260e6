"""One question a file. Run from the repository root: `python -m experiments.NAME --out OUT`."""
