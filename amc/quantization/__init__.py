"""Quantized networks: one description that every runtime reads, and the network that computes as they do.

- ``settings.py``: what to quantize, and how.
- ``description.py``, ``storage.py``: scales, zero points and bits as a frozen value, and on disk.
- ``operators.py``: the arithmetic, as operators that exporters translate.
- ``layers.py``: layers with integer weights, activations on a grid.
- ``program.py``: a network as an exported graph, batch norms folded; where it can be quantized.
- ``modules.py``: the same for networks that cannot be exported, by hooks.
- ``grids.py``: ranges of weights and activations.
- ``rounding.py``: weights rounded to nearest or by second moments; bias correction.
- ``sensitivity.py``: what each layer costs at each number of bits.
- ``learned``: weights and step sizes are trained through the rounding.
- ``written``: how the operators are written for other tools.
- ``calibration.py``: the whole quantization of a network.
- ``simulation.py``: from a description back to the network.
"""
