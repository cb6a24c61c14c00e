"""Three ways of cutting channels out of a network, and the proof that they agree.

- ``modules.py``: ``KINDS``, how each kind of module is cut.
- ``slicing.py``: ``Cut`` and ``slice_model``: the kept rows and columns of every tensor. The search uses it.
- ``zeroing.py``: the same channels set to zero in the dense network.
- ``surgery.py``: the same channels removed by torch-pruning.
- ``exactness.py``: the proof that the three compute the same.
- ``lively.py``: what the proof runs on: a copy with random weights, and subsets of its channels.
- ``folding.py``: a batch norm folded into the convolution before it.
- ``trial.py``: trial runs: does a network repeat itself, and can it take a training step.
- ``reasons.py``: why a group cannot be cut, in words.
"""
