"""How the operators of quantized networks are written for other tools, with the same numbers.

- ``onnx.py``: in ONNX.
- ``explicit.py``: as PyTorch's own operators, from which ``.pt2``, ExecuTorch and LiteRT files are made.
- ``coreml.py``: in Core ML's intermediate language.
- ``kernels.py``: with the roundings of XNNPACK, to compare ExecuTorch's and LiteRT's files with.
"""
