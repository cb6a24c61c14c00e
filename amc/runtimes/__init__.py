"""One file a runtime: it converts a network, loads it, and runs it.

- ``protocol.py``: ``Backend`` and ``FileBackend``, what a runtime provides.
- ``checked.py``, ``reference.py``: the check that a converted network agrees with eager PyTorch.
- ``onnx_file.py``, ``onnx_session.py``: what the runtimes that read ONNX share.
"""
