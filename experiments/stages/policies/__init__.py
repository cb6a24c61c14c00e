"""Stages that decide widths.

``keeper.py`` serves ``search.py``, and ``cut_problem.py`` serves ``schedule.py``.
"""
