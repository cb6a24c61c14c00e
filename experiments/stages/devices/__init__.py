"""Stages that use networks outside of PyTorch.

- ``export.py``: files for other runtimes.
- ``quantized.py``: the quantized network as files, and what runtimes compute from them.
- ``benchmark.py``: latency, throughput and memory of the dense and the final network.
- ``serve.py``: both networks under a fixed load.
"""
