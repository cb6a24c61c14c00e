"""The sections of the configuration.

- ``library.py``: those that fill settings of the library, derived from them.
- ``data.py``: one for each data set.
- ``agents.py``: one for each agent.
- ``stages.py``: those of single stages.
"""
