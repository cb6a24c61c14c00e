"""Image files: folders, one per class, as ImageNet is laid out, or lists of paths.

- ``imagefolder.py``: the data set.
- ``listing.py``: which files there are, and their classes.
- ``lists.py``: text files that list pictures.
- ``decoding.py``: files to tensors.
"""
