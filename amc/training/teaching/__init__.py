"""Teachers, whose outputs and features a network learns.

- ``protocol.py``: ``Batch``, ``Teacher``, a network as a teacher, and the loss of distillation.
- ``cache.py``: logits that are computed once for each view of the images.
- ``black_box.py``: teachers of which only outputs are known.
- ``hints.py``: a teacher's features as targets.
"""
