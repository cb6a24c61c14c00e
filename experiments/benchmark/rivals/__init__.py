"""Other tools that prune channels, on the same network with the same training afterwards.

- ``compare.py``: the command line, and a row for each tool and seed.
- ``pruners.py``: torch-pruning's pruners.
- ``fastnas.py``: NVIDIA ModelOpt's FastNAS.
"""
