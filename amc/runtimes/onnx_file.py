"""A network as a serialised ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amc.errors import AmcError, SettingError, out_of_memory
from amc.runtimes.reference import cause, conversion, eval_on_cpu, random_batch
from amc.third_party import FIXED_BATCH, missing, onnx_operators_kept

if TYPE_CHECKING:
    import onnx
    from torch import nn

ONNX_PACKAGES = ("onnx", "onnxscript")
"""Packages that torch exports to ONNX with."""
INPUT_NAME = "input"
_MOST_BYTES = 2**31
"""What one file of protobuf, the format that ONNX is written in, can hold."""


def newest_opset() -> int | None:
    """Return the newest version of ONNX's operators that the installed onnx has; None without one."""
    if missing("onnx") is not None:
        return None
    import onnx

    return int(onnx.defs.onnx_opset_version())


def onnx_bytes(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> bytes:
    """Return ``model`` as a serialised ONNX graph, not compared with eager.

    Args:
        model: The network.
        input_shape: One image, (C, H, W).
        batch: Not used: the graph takes any batch size.

    Raises:
        AmcError: The network cannot be exported.
    """
    return checked_bytes(onnx_graph(model, input_shape))


def onnx_graph(
    model: nn.Module, input_shape: tuple[int, int, int], opset: int | None = None
) -> onnx.ModelProto:
    """Export a copy of ``model`` in eval mode on the CPU, with a free batch size.

    The graph has one input ``input`` of shape (batch, C, H, W) and one output ``logits``, both float32.

    Args:
        model: A network that maps one image batch to one tensor.
        input_shape: One image, (C, H, W).
        opset: ONNX operator set version; the exporter's own default if None.

    Raises:
        AmcError: The network cannot be exported.
        SettingError: It cannot be exported at this opset.
    """
    import torch

    from amc.quantization.layers import is_quantized
    from amc.quantization.written.onnx import least_opset, packed, packs, slim, translations

    quantized = is_quantized(model)
    least = least_opset(model) if quantized else None
    if opset is None:
        opset = least
    elif least is not None and opset < least:
        raise SettingError(
            f"opset is {opset}, expected {least} or more for this quantized network: "
            "its weights have 4 bits, or share scales in blocks, which older operators lack"
        )
    with conversion(model, input_shape, "export to ONNX"), onnx_operators_kept():
        program = torch.onnx.export(
            eval_on_cpu(model),
            (random_batch(input_shape, 2),),  # 2: a batch of 1 would be taken for a constant
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT_NAME],
            output_names=["logits"],
            opset_version=opset,
            custom_translation_table=dict(translations()) if quantized else None,
            external_data=False,
            verbose=False,
        )
        assert program is not None  # the dynamo exporter always returns its program
        proto: onnx.ModelProto = program.model_proto
        _check_free_batch(proto)
        if quantized:
            proto = slim(packed(proto) if packs(model) else proto)
    written = next(int(entry.version) for entry in proto.opset_import if entry.domain == "")
    if opset is not None and written != opset:
        raise SettingError(
            f"the exporter wrote opset {written}, expected opset {opset}; "
            "likely no conversion exists for one of the operators: ask for a newer opset"
        )
    return proto


def _check_free_batch(proto: onnx.ModelProto) -> None:
    """Refuse a graph that takes a fixed number of images.

    Raises:
        AmcError: it does.
    """
    images = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not images.dim_param:
        raise AmcError(f"the graph takes {images.dim_value} images at a time, as {FIXED_BATCH}")


def checked_bytes(proto: onnx.ModelProto) -> bytes:
    """Serialise a graph, once ONNX's own checker accepts it.

    Raises:
        AmcError: The graph is too large for one file, or the checker refuses it.
    """
    import onnx

    try:
        payload: bytes = proto.SerializeToString(deterministic=True)
        onnx.checker.check_model(payload, full_check=True)
    except Exception as error:  # protobuf and the checker have no common base class of errors
        weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
        if weights >= _MOST_BYTES:
            raise AmcError(
                f"the ONNX graph has {weights / 2**30:.2f} GiB of weights, expected less than the 2 GiB that "
                "one file can hold"
            ) from error
        if out_of_memory(error):
            raise
        raise AmcError(
            f"the ONNX graph is not valid: {cause(error)}; likely an operator that was translated wrongly"
        ) from error
    return payload
