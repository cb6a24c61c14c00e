"""Optional packages are reported and done without; workarounds fit the versions that are installed."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from amc.third_party import missing, onnx_operators_kept, return_free_memory, without


def test_missing_packages_are_named():
    assert missing("json") is None
    assert missing("json", "no_such_package") == "not installed: no_such_package"


def test_a_package_is_hidden_only_during_the_block(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys")
    with without("colorsys"):
        assert importlib.import_module("colorsys")


def test_the_operators_of_onnx_are_made_once():
    registry = pytest.importorskip(
        "torch.onnx._internal.exporter._registration",
        reason=f"torch {torch.__version__} has its table of ONNX operators elsewhere: exports are slower",
    ).ONNXRegistry
    own, tables = vars(registry)["from_torchlib"], []
    for _ in range(2):
        with onnx_operators_kept():
            tables.append(registry.from_torchlib())
    assert tables[0] is tables[1]
    assert vars(registry)["from_torchlib"] is own


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's figures of the process")
def test_free_memory_is_returned():
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    blocks = [np.ones(2**10) for _ in range(2**13)]  # 64 MiB in pieces that the heap keeps
    last = blocks.pop()
    before = pages()
    del blocks
    return_free_memory()
    assert before - pages() > 2**13  # 32 of the 64 MiB
    assert last[0] == 1


@pytest.mark.slow  # a fresh process that imports torch, torchvision and torch-pruning
def test_a_trace_does_not_import_timm():
    pytest.importorskip("timm")
    code = (
        "import sys, torch; from amc.graph.trace import trace; from amc.models import resnet20; "
        "trace(resnet20(), torch.zeros(1, 3, 8, 8)); print('timm' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
