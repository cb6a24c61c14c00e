"""OpenVINO's own format (.xml and .bin), float32, made from the ONNX file."""

from __future__ import annotations

import sys
from typing import Any


def openvino_module() -> Any:
    """Import OpenVINO without the package by which it reports its import to its maker over the network.

    OpenVINO has a stub for where ``openvino_telemetry`` is not installed; None stands for that here.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino
