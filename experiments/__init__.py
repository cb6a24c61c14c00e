"""The command line and the Python library: read the configuration, run stages, write the run folder.

- ``start.py``, ``main.py``: the ``amc`` command; the first imports the second.
- ``job.py``: all runs of one job: the stages of one run, or of one run for each budget.
- ``pareto.py``: the Pareto front of points, as pure numbers.
- ``statistics.py``: means with t intervals, and rank correlation.

The folders: ``config`` (the typed configuration), ``command`` (the command line around Hydra), ``run`` (the
run folder and what stages share), ``stages``, ``report`` (tables and pages), ``library`` (``amc.compress``),
``reproduce`` (tables of many runs), ``benchmark``, ``coverage``, ``examples`` and ``published`` (records).
"""
