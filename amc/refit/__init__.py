"""New weights for layers that lost inputs: looked up during a search, or solved in forward order.

- ``lookup.py``: ``RefitLookup``, the refit of a search: weights by layer and kept channels.
- ``moments.py``, ``nested.py``: the second moments behind it, and the solutions for nested sets of channels.
- ``sequential.py``: the refit of the winner: each layer sees what the layers before it deliver.
- ``traced.py``, ``operations.py``, ``walk.py``: that refit along a symbolic trace.
- ``recorded.py``, ``calls.py``: that refit for networks that cannot be traced, by hooks.
- ``layer.py``, ``least_squares.py``, ``activations.py``: one layer, solved and put in place.
- ``images.py``: calibration images in blocks.
"""
