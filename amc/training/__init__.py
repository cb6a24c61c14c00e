"""Training from scratch and fine-tuning, with a resume that gives the same weights bit for bit.

- ``settings.py``: ``TrainSettings``, the learning-rate schedule and ``EpochRecord``.
- ``loop.py``: ``train``, the loop itself.
- ``parts.py``: ``PartedBatch``, a batch in parts where memory runs out.
- ``resume.py``: the checkpoint of an interrupted training.
"""
