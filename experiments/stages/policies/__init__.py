"""Stages that decide widths, or measure what decides them.

``cut_problem.py`` serves ``schedule.py``, and ``trials.py`` serves ``choose.py`` and ``correlate.py``.
"""
