"""Whether exported files compute what networks compute: every exporter on pruned networks, float and int8.

- ``networks.py``: the networks, pruned at random ratios.
- ``measure.py``: one network in one format, written and run.
- ``table.py``: the page of the measurements.
"""
