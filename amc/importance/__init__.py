"""The order in which a group loses its channels, and the output error at each width.

Import from the modules: this file imports nothing, as most of them need torch.

- ``names.py``: the names of the orders.
- ``orders.py``: ``channel_orders``, the entry for all orders.
- ``elimination.py``: backward elimination by the least-squares error of the consumer layers (``obs``).
- ``sensitivity.py``: how much an error in a layer's outputs changes the logits.
- ``taylor.py``: first-order Taylor terms of the loss (``taylor``).
- ``gradients.py``: batches of images and reproducible gradients, for the two above.
- ``global_ranking.py``: one ranking of the channels of all groups by torch-pruning's importances.
"""
