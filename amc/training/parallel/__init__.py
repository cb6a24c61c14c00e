"""Several processes that train one network: each has a part of every batch.

- ``group.py``: ``Group``, the processes, and what they exchange.
- ``sharding.py``: weights that lie in parts on the processes.
- ``norms.py``: batch norms whose statistics are those of the whole batch.
"""
