"""Benchmarks of the search itself: ``python -m experiments.benchmark WHAT``, each in a file of its own."""
