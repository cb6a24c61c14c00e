"""From a network to its channel groups.

Import from the modules; ``trace`` and ``Graph`` are what most of them need.

- ``trace.py``: ``trace``, from a network and an example image to its ``Graph``.
- ``groups.py``: the values that it returns: ``Graph``, ``ChannelGroup``, ``Slot``, ``Unprunable``.
- ``patterns.py``: patterns that name layers and groups in settings.
- ``layers.py``: the convolution and linear layers as they ran on the example image.
- ``dependencies.py``: which channels have to be removed together, from torch-pruning's graph.
- ``recording.py``: the forward pass as it is recorded: chunks, what modules read, gradients everywhere.
- ``recurrent.py``: recurrent layers as one operation each.
- ``axes.py``: the axis that holds the channels of each tensor.
- ``walls.py``: operations through which channels cannot be followed.
- ``tied.py``: layers that share their weights with others.
- ``torch_pruning_adapter.py``: everything that uses private names of torch-pruning.
- ``unfolding.py``: a layer as a matrix product.
- ``columns.py``: its inputs as a least-squares fit reads them.
"""
