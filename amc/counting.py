"""An independent count of multiply-adds: fvcore walks the traced network, ours is closed-form."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Count the multiply-adds of convolution and linear operations for one image with fvcore."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        return _count(model, input_shape)


def _count(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    from fvcore.nn import FlopCountAnalysis

    counter = FlopCountAnalysis(model.eval(), torch.zeros(1, *input_shape))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    by_operator = counter.by_operator()
    return int(sum(count for name, count in by_operator.items() if name in ("conv", "linear")))
