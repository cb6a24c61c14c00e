"""The order in which a group loses its channels, and the output error at each width.

- ``orders.py``: ``channel_orders``, the entry for all orders.
- ``elimination.py``: backward elimination by the least-squares error of the consumer layers (``obs``).
- ``sensitivity.py``: how much an error in a layer's outputs changes the logits.
- ``taylor.py``: first-order Taylor terms of the loss (``taylor``).
- ``gradients.py``: batches of images and reproducible gradients, for the two above.
- ``global_ranking.py``: one ranking of the channels of all groups by torch-pruning's importances.
"""

from amc.importance.elimination import Elimination, eliminate, make_reader
from amc.importance.global_ranking import Importance, global_scores
from amc.importance.orders import ORDERS, SCORERS, ChannelOrders, Scorer, channel_orders, check_order
from amc.importance.sensitivity import logit_sensitivity
from amc.importance.taylor import taylor_terms

__all__ = [
    "ORDERS",
    "SCORERS",
    "ChannelOrders",
    "Elimination",
    "Importance",
    "Scorer",
    "channel_orders",
    "check_order",
    "eliminate",
    "global_scores",
    "logit_sensitivity",
    "make_reader",
    "taylor_terms",
]
