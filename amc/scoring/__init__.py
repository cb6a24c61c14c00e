"""Running a network on images, and the scores of its outputs.

Import from the modules: this file imports nothing, as some of them need torch.

- ``run.py``: logits or outputs of a network for a set of images.
- ``halving.py``: smaller parts of a batch where memory runs out.
- ``layout.py``: the memory format that a network runs in.
- ``flatten.py``: any structure of output tensors as one matrix, one row per image.
- ``scores.py``: accuracy, cross-entropy, agreement (KL) and likeness (relative output error).
- ``corruptions.py``: images with noise, blur, less contrast or traces of JPEG.
- ``strengths.py``: the names of these corruptions, and how strong they are.
- ``precision.py``: the number formats that candidates run in.
"""
