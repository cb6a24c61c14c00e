"""Evaluating many candidates at the same time: worker processes on this machine or in a Ray cluster.

- ``settings.py``: ``WorkerSettings``.
- ``protocol.py``: what a worker and a backend provide.
- ``pool.py``: ``WorkerPool``, which distributes evaluations and replaces lost workers.
- ``process.py``: workers as processes of this machine.
- ``ray.py``: workers as Ray actors.
- ``shared_memory.py``: an object packed into one block of memory that all workers share.
"""
