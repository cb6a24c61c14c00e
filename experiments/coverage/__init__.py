"""Which networks can be pruned: the proof of exactness over whole model zoos.

- ``zoo.py``: the networks that are tried.
- ``measure.py``: one network, measured.
- ``table.py``: the page of the measurements.
"""
