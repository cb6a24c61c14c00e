"""What all budgets of a job share: the network, the data, the evaluator and the latency.

- ``problem.py``: ``Problem``, the network, the data and the evaluator of candidates.
- ``weights.py``: ``DenseWeights``, the weights of the dense network, and the images that it was trained on.
- ``latency.py``: ``LatencySource``, the latency model of the run folder, and the runtime that measures.
"""
