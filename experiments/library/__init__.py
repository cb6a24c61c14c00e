"""The engine of the command line as Python functions; ``import amc`` offers them.

The same network, images, settings and seed give the same strategy as the command line.

- ``compress.py``: ``compress``, search and pruning in one call.
- ``task.py``: ``CompressionTask``, one network, its images and one budget, for any agent.
- ``arguments.py``: the checks of what it is given.
- ``latency.py``: its latency budget, measured on this machine.
- ``stepping.py``: the network of an environment that the caller steps.
- ``compressed.py``: ``Compressed``, the result.
- ``images.py``: images from tensors, data sets and loaders.
"""

from experiments.library.compress import compress
from experiments.library.compressed import Compressed
from experiments.library.task import CompressionTask

__all__ = ["Compressed", "CompressionTask", "compress"]
