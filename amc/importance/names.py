"""The names of the channel orders; nothing here imports torch."""

from __future__ import annotations

from amc.errors import SettingError

ORDERS = ("obs", "taylor", "l1", "l2", "random")
"""All orders.

``obs``: backward elimination by the least-squares error of the consumer layers
(``amc.importance.elimination``). ``taylor``: squared sum of weight x gradient of the loss over the consumer
layers' weights (Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019). The others
are the keys of ``amc.importance.orders.SCORERS``.
"""


def check_order(name: str) -> None:
    """Check the name of an order.

    Raises:
        SettingError: it is none of ``ORDERS``.
    """
    if name not in ORDERS:
        raise SettingError(f"order is {name!r}; expected one of {', '.join(ORDERS)}")
