"""Training from scratch and fine-tuning, with a resume that gives the same weights bit for bit.

- ``settings.py``: ``TrainSettings``, the learning-rate schedule and ``EpochRecord``.
- ``loop.py``: ``train``, the loop itself.
- ``resume.py``: the checkpoint of an interrupted training.
"""
