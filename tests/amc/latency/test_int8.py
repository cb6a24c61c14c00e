"""Latency of networks that are quantized before they are measured."""

import onnx
import pytest

from amc.errors import AmcError, SettingError
from amc.latency import get_backend
from amc.latency.prediction import int8
from amc.latency.prediction.int8 import in_int8
from amc.latency.prediction.layer_kinds import LayerKind
from amc.latency.prediction.profile import target_of
from amc.runtimes.onnxruntime import ONNXRUNTIME

KIND = LayerKind("conv", (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), norm=True)


def test_a_layer_alone_reads_and_writes_integers():
    content = in_int8(ONNXRUNTIME).convert(KIND.network(4, 6).eval(), KIND.input_shape(4), 1)
    graph = onnx.load_from_string(content).graph
    makers = {output: node for node in graph.node for output in node.output}
    (conv,) = [node for node in graph.node if node.op_type == "Conv"]
    assert [makers[name].op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
    readers = [node.op_type for node in graph.node if set(node.input) & set(conv.output)]
    assert set(readers) <= {"QuantizeLinear", "Relu"}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 2


def test_a_transposed_layer_stays_float():
    kind = LayerKind("transposed", (2, 2), (2, 2), (0, 0), (1, 1), 1, (8, 8), norm=False)
    content = in_int8(ONNXRUNTIME).convert(kind.network(4, 6).eval(), kind.input_shape(4), 1)
    assert not any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(content).graph.node)


def test_a_failed_quantization_is_no_float_time(monkeypatch):
    def fail(*_):
        raise AmcError("an activation is not finite")

    monkeypatch.setattr(int8, "quantize", fail)
    with pytest.raises(AmcError, match="not finite"):
        in_int8(ONNXRUNTIME).convert(KIND.network(4, 6).eval(), KIND.input_shape(4), 1)


@pytest.mark.slow
def test_tables_of_integers_are_their_own():
    target = target_of(in_int8(ONNXRUNTIME), 1, 1)
    assert target.precision == "static_int8"
    assert target.file_name != target_of(ONNXRUNTIME, 1, 1).file_name


def test_a_runtime_without_quantized_networks_is_refused():
    with pytest.raises(SettingError, match=r"profile\.int8=true with profile\.backend=torch: it runs no"):
        in_int8(get_backend("torch"))
