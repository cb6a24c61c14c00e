"""Training from scratch and fine-tuning, with a resume that gives the same weights bit for bit.

- ``settings.py``: ``TrainSettings``, the learning-rate schedule, ``EpochRecord`` and ``Trained``.
- ``loop.py``: ``train``, the epochs of a training.
- ``learner.py``: ``Learner``, what one batch does to the network.
- ``parts.py``: ``PartedBatch``, a batch in parts where memory runs out.
- ``batches.py``: the images that an epoch shows, with their targets.
- ``augment.py``: RandAugment, random erasing, mixup and cutmix.
- ``averaging.py``: the moving average of the weights.
- ``methods.py``: what is trained: all weights, norms, or adapters of low rank.
- ``teaching``: teachers, and what is learned from them.
- ``parallel``: several processes that train one network.
- ``compiling.py``: ``torch.compile``.
- ``pace.py``: how long a training takes.
- ``resume.py``: the checkpoint of an interrupted training.
"""
