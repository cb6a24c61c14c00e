"""Scripts to start from: ``python -m experiments.examples.NAME``."""
