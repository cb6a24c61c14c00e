"""Candidate networks: from the widths of all groups to a network and its scores.

- ``settings.py``: how candidates are made and judged, and how the winner is pruned.
- ``builder.py``: ``CandidateBuilder``, from widths to a network.
- ``folding.py``: the network that the search runs: batch norm folded, tensors exchanged.
- ``evaluator.py``: ``Evaluator``, from widths to scores.
- ``memo.py``: the file of evaluations that are already known.
- ``fingerprint.py``: the hash of everything that determines an evaluation.
- ``error_curves.py``: the output error of pruning each group alone, measured.
- ``pruning.py``: the winner, pruned, checked and refitted.
"""
