"""A candidate network: widths in, what it achieves out."""
