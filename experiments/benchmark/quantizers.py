"""Weights of few bits, our rounding beside others': ``... benchmark quantizers OVERRIDE ...``.

The overrides describe the network and its data as they do for ``amc``; with ``--folder RUN`` the final
network of a run is taken. Weights alone are integers, with one scale for each output channel. Every variant
is judged on all test images. torchao is an extra (``amc-search[executorch]`` installs it), ModelOpt is not
(``pip install nvidia-modelopt``); where one is missing, its rows say so.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings
from amc.scoring.run import copied, outputs
from amc.scoring.scores import likeness, top1
from experiments.benchmark.problem import open_trained, refuse_words
from experiments.run.run import Run
from experiments.stages.networks.quantize import BATCH_SIZE, final_network

Quantizer = Callable[[nn.Module, Tensor, int], nn.Module]
"""From a float network, calibration images (N, C, H, W) and bits to the network with rounded weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--quantizers", nargs="+", default=list(QUANTIZERS), choices=list(QUANTIZERS))
    parser.add_argument("--folder", help="a run, whose final network is taken")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the quantizers; see the module's docstring.

    Raises:
        AmcError: the overrides or the bits are wrong.
    """
    for bits in options.bits:
        QuantizeSettings(method="weight_only", weight_bits=bits)
    refuse_words(options.overrides, ["quantize"], "give --bits and --quantizers")
    with tempfile.TemporaryDirectory() as folder:
        job = open_trained(Path(options.folder or folder), *options.overrides)
        found = _compared(job, options.bits, options.quantizers)
        job.problem.release()
    return {"overrides": options.overrides, **found}


def _compared(job: Run, all_bits: list[int], names: list[str]) -> dict[str, Any]:
    model, _ = final_network(job)
    calibration, test = job.problem.chosen.calibration.images, job.problem.splits.test()
    exact = outputs(model, test.images, BATCH_SIZE)
    rows: list[dict[str, Any]] = []
    pairs = [(bits, name) for bits in all_bits for name in names]
    for bits, name in tqdm(pairs, disable=None):
        row: dict[str, Any] = {"bits": bits, "quantizer": name}
        started = time.process_time()
        try:
            rounded = QUANTIZERS[name](copied(model), calibration, bits)
        except ImportError as error:
            rows.append({**row, "not_run": str(error)})
            continue
        seconds = time.process_time() - started
        got = outputs(rounded, test.images, BATCH_SIZE)
        row |= {"top1": top1(got, test.labels), "likeness": likeness(got, exact), "cpu_seconds": seconds}
        rows.append(row)
    return {"float_top1": top1(exact, test.labels), "test_images": len(test), "quantizers": rows}


def _ours(settings: QuantizeSettings) -> Quantizer:
    def rounded(model: nn.Module, calibration: Tensor, bits: int) -> nn.Module:
        return quantize(model, calibration, replace(settings, weight_bits=bits)).model

    return rounded


def _torchao(model: nn.Module, calibration: Tensor, bits: int) -> nn.Module:
    """Round by torchao's own functions; its ``quantize_`` itself takes linear layers only."""
    from torchao.quantization import quant_primitives as torchao

    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight, block = module.weight.data, (1, *module.weight.shape[1:])
            scale, zero = torchao.choose_qparams_affine(
                weight,
                torchao.MappingType.SYMMETRIC,
                block,
                target_dtype=torch.int8,
                quant_min=lowest,
                quant_max=highest,
            )
            integers = torchao.quantize_affine(weight, block, scale, zero, torch.int8, lowest, highest)
            module.weight.data = torchao.dequantize_affine(
                integers, block, scale, zero, torch.int8, lowest, highest
            )
    return model


def _modelopt(algorithm: str) -> Quantizer:
    """Return NVIDIA ModelOpt's quantizer with one of its algorithms for ranges and rounding."""

    def rounded(model: nn.Module, calibration: Tensor, bits: int) -> nn.Module:
        from modelopt.torch import quantization

        config = {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            ],
            "algorithm": algorithm,
        }
        with contextlib.redirect_stdout(sys.stderr):
            found: nn.Module = quantization.quantize(
                model, config, lambda network: outputs(network, calibration, BATCH_SIZE)
            )
        return found

    return rounded


_WEIGHTS = QuantizeSettings(method="weight_only", sensitivity_images=0)
QUANTIZERS: dict[str, Quantizer] = {
    "torchao": _torchao,
    "ModelOpt, max": _modelopt("max"),
    "ModelOpt, mse": _modelopt("mse"),
    "nearest": _ours(replace(_WEIGHTS, rounding="nearest", ranges="minmax", bias_correction=False)),
    "nearest, range of the least error": _ours(replace(_WEIGHTS, rounding="nearest", bias_correction=False)),
    "moments": _ours(_WEIGHTS),
}
