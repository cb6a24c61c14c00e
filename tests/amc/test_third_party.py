"""Optional packages are told of, and done without."""

import importlib
import subprocess
import sys

import pytest

from amc.third_party import missing, without


def test_missing_packages_are_named():
    assert missing("json") is None
    assert missing("json", "no_such_package") == "not installed: no_such_package"


def test_a_package_is_hidden_only_meanwhile(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys")
    with without("colorsys"):
        assert importlib.import_module("colorsys")


def test_a_trace_does_not_import_timm():
    pytest.importorskip("timm")
    code = (
        "import sys, torch; from amc.graph.trace import trace; from amc.models import resnet20; "
        "trace(resnet20(), torch.zeros(1, 3, 8, 8)); print('timm' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
