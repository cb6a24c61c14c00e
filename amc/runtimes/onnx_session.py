"""A session of onnxruntime with a fixed number of threads. Remote hosts run this file as it is."""

from __future__ import annotations

from typing import Any


def open_session(
    onnxruntime: Any, content: bytes | str, threads: int, provider: str = "CPUExecutionProvider"
) -> Any:
    """Open a session that runs one operator after the other; threads that wait do not spin.

    Args:
        onnxruntime: The module.
        content: The ONNX file, or its path, if weights lie in files beside it.
        threads: Threads of one operator.
        provider: The part of onnxruntime that runs the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=[provider])
