"""The names of the scores of single weights; nothing here imports torch."""

from __future__ import annotations

from amc.errors import SettingError

ORDERS = ("magnitude", "curvature")
"""The keys of ``amc.sparsity.scores.SCORES``."""


def check_order(order: str) -> None:
    """Refuse an unknown score.

    Raises:
        SettingError: ``order`` is none of ``ORDERS``.
    """
    if order not in ORDERS:
        raise SettingError(f"sparsify.order is {order!r}; expected one of {', '.join(ORDERS)}")
