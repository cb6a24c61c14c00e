"""Fine-grained pruning: single weights become zero, and all shapes stay.

- ``names.py``: the names of the scores.
- ``scores.py``: the estimated cost of losing each weight, by magnitude or by curvature.
- ``weights.py``: ``SparseBuilder``, from the density of every layer to a network.
- ``training.py``: training that keeps the zeros.
"""
