import subprocess
import sys

import pytest

from amc import SettingError
from amc.quantization.settings import QuantizeSettings


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"method": "static"}, "expected one of none, fp16, .*; did you mean 'static_int8'"),
        ({"weight_bits": 5}, "quantize.weight_bits is 5; expected one of 2, 3, 4, 6, 7, 8"),
        ({"rounding": "up"}, "quantize.rounding is 'up'"),
        ({"ranges": "max"}, "quantize.ranges is 'max'"),
        ({"group": 16}, "integer kernels need one scale a channel"),
        ({"percentile": 10}, "quantize.percentile is 10"),
        (
            {"method": "weight_only", "ranges": "percentile"},
            "percentile with quantize.method=weight_only, which",
        ),
        (
            {"method": "binary", "ranges": "percentile"},
            "percentile with quantize.method=binary, which measures",
        ),
        ({"tolerance": 0.0}, "quantize.tolerance is 0"),
        ({"epochs": 0}, "quantize.epochs is 0 and quantize.lr 0.01"),
        ({"lr": float("nan")}, "quantize.lr nan; expected at least 1, and a positive number"),
        ({"method": "binary", "weight_bits": 4}, "1 bit, and 8 in the first and last layer"),
        ({"method": "qat", "group": 16}, "integer kernels need one scale a channel"),
        ({"sensitivity_images": -1}, "quantize.sensitivity_images is -1"),
        ({"sensitivity_images": 1}, "quantize.sensitivity_images is 1; expected 0 for none, or 2"),
        ({"method": "fp16", "exclude": ("a", "b")}, r"exclude is \[a,b\] with quantize.method=fp16, .*=\[\]"),
        ({"method": "bf16", "tolerance": 0.1}, "tolerance is 0.1 with .*=bf16, .* quantize.tolerance=null"),
        ({"method": "fp16", "weight_bits": 4}, "weight_bits is 4 with .*=fp16, .* quantize.weight_bits=8"),
    ],
)
def test_impossible_settings_are_refused(wrong, expected):
    with pytest.raises(SettingError, match=expected):
        QuantizeSettings(**wrong)


def test_going_back_takes_the_groups_of_the_command_before():
    assert QuantizeSettings("none", group=36, weight_bits=4).form == "none"
    with pytest.raises(SettingError, match=r"quantize\.group is -1 with quantize\.method=none"):
        QuantizeSettings("none", group=-1)


def test_layers_to_leave_out_are_given_in_any_sequence():
    assert QuantizeSettings("fp16", exclude=[]).exclude == ()
    assert QuantizeSettings(exclude=["a", "b"]) == QuantizeSettings(exclude=("a", "b"))
    assert QuantizeSettings(exclude="layer1*").exclude == ("layer1*",)


def test_settings_import_no_torch():
    code = "import sys, amc.quantization.settings; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
