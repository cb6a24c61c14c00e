"""Benchmarks of the search itself, one file each: ``python -m experiments.benchmark NAME``."""
