"""The engine of the command line for those who live in Python; ``import amc`` offers it.

The same network, images, settings and seed give the same strategy as the command.

- ``compress.py``: the search and the cut as one call.
- ``task.py``: one network, its images and a budget, for any agent.
- ``compressed.py``: the result.
- ``images.py``: images from tensors, data sets and loaders.
"""

from experiments.library.compress import compress
from experiments.library.compressed import Compressed
from experiments.library.task import CompressionTask

__all__ = ["Compressed", "CompressionTask", "compress"]
