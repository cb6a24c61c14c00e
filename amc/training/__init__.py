"""Training from scratch and fine-tuning, with a resume that gives the same weights bit for bit.

- ``settings.py``: ``TrainSettings``, the learning-rate schedule, ``EpochRecord`` and ``Trained``.
- ``loop.py``: ``train``, the loop itself.
- ``batches.py``: the images that an epoch shows, with their targets.
- ``augment.py``: RandAugment, random erasing, mixup and cutmix.
- ``averaging.py``: the moving average of the weights.
- ``teachers.py``: teachers and the loss of distillation.
- ``compiling.py``: ``torch.compile``.
- ``pace.py``: how long a training takes.
- ``resume.py``: the checkpoint of an interrupted training.
"""
