"""Stages that measure what decisions on widths rest on: what can be cut, what it costs, which scores hold.

``trials.py`` trains several networks in the same way, for ``correlate.py`` and for ``policies/choose.py``.
"""
