"""Training of quantized networks: weights and step sizes are learned through the rounding.

- ``layers.py``: layers and activations whose rounding lets gradients through.
- ``network.py``: from a quantized network to one that trains, and back.
"""
