"""Hydra configuration: plain yaml, checked against ``experiments/schema.py``."""
