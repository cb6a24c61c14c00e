"""Layers and sums on integers: sums are exact, and rounded once, as in the kernels of runtimes."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from amc.quantization.layers import IntegerLayer, IntegerSum, RoundTrip

DRAW = torch.Generator().manual_seed(5)


def integers(low, high, *shape):
    return torch.randint(low, high + 1, shape, generator=DRAW)


@pytest.mark.parametrize("channels", [8, 1024], ids=["in float32", "in float64"])
def test_a_layer_adds_integers_exactly_and_rounds_once(channels):
    step, out, zero = 0.0371, 0.0021, 3
    weight, scale = integers(-127, 127, 6, channels).to(torch.int8), torch.rand(6, generator=DRAW) * 1e-3
    bias = integers(-(2**26), 2**26, 6).to(torch.int32)
    whole = integers(0, 255, 50, channels) - zero
    layer = IntegerLayer(nn.Linear(channels, 6), weight, scale, bias, step=step, out=out)
    found = layer(whole.float() * step)
    sums = (whole @ weight.long().T + bias).numpy()
    assert abs(sums).max() > 2**24  # float32 does not hold them all
    factor = scale.numpy() * np.float32(step) / np.float32(out)
    expected = np.rint(sums.astype(np.float32) * factor)
    assert len(np.unique(expected)) > 100
    assert (found.numpy() == expected * np.float32(out)).all()


def test_an_output_that_is_on_no_grid_is_not_rounded():
    layer = nn.Conv2d(2, 3, 3, padding=1, groups=1)
    weight = integers(-127, 127, 3, 2, 3, 3).to(torch.int8)
    scale, bias = torch.full((3,), 0.01), torch.tensor([5, -7, 0], dtype=torch.int32)
    values = integers(-9, 9, 4, 2, 5, 5).float() * 0.5
    found = IntegerLayer(layer, weight, scale, bias, step=0.5)(values)
    expected = torch.conv2d(values, weight * 0.01, bias * 0.005, padding=1)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_sum_is_rounded_once_with_both_zero_points():
    left, right, out = RoundTrip(0.02, 100), RoundTrip(0.05, 7), RoundTrip(0.04, 90)
    a, b = integers(0, 255, 2000), integers(0, 255, 2000)
    found = out(IntegerSum(left, right, out)((a - 100) * left.scale, (b - 7) * right.scale))
    exact = (a.double() - 100) * float(left.scale) + (b.double() - 7) * float(right.scale)
    whole = exact / float(out.scale)
    clear = (whole % 1 - 0.5).abs() > 1e-4  # ties fall as float32 has them
    expected = (whole.round() + 90).clamp(0, 255) - 90
    assert clear.sum() > 1000
    assert torch.equal(found[clear], (expected * out.scale.double()).float()[clear])


def test_a_sum_of_all_pairs_is_that_of_onnxruntimes_kernel():
    a, b = (
        each.flatten().to(torch.uint8) for each in torch.meshgrid(*[torch.arange(256)] * 2, indexing="ij")
    )
    for _ in range(20):
        left, right, out = (
            RoundTrip(scale, zero) for scale, zero in zip(_scales(), (113, 137, 90), strict=True)
        )
        values = ((each.float() - grid.zero_point) * grid.scale for each, grid in ((a, left), (b, right)))
        found = out(IntegerSum(left, right, out)(*values)) / out.scale + out.zero_point
        assert (found.round().numpy() == _added(left, right, out, a.numpy(), b.numpy())).all()


def _scales():
    return (0.02 + 0.03 * torch.rand(3, generator=DRAW)).tolist()


def _added(left, right, out, a, b):
    """Return what onnxruntime's kernel of sums computes on integers."""
    numbers = {"a": None, "as": left.scale, "az": left.zero_point, "b": None, "bs": right.scale}
    numbers |= {"bz": right.zero_point, "cs": out.scale, "cz": out.zero_point}
    node = helper.make_node("QLinearAdd", list(numbers), ["c"], domain="com.microsoft")
    kinds = [helper.make_tensor_value_info(name, TensorProto.UINT8, [None]) for name in "abc"]
    given = [
        numpy_helper.from_array(each.numpy(), name) for name, each in numbers.items() if each is not None
    ]
    graph = helper.make_graph([node], "sum", kinds[:2], kinds[2:], given)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"a": a, "b": b})[0]
