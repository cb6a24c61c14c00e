"""Peak memory of a network in a runtime: what a fresh process grows by when it loads and runs the file.

The growth is that of the resident set, from before the file is read to the peak over three runs. It holds the
file, the weights as the runtime packs them, the activations, and what the runtime itself loads at its first
network: the same for a dense and a pruned one. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from amc.runtimes.protocol import FileBackend, Shape

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # see proc(5), clear_refs


def peak_memory(
    backend: FileBackend, content: bytes, input_shape: Shape, batch: int, threads: int
) -> int | None:
    """Return the peak in bytes; None where it cannot be known."""
    if not _STATUS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        file.write_bytes(content)
        arguments = [backend.name, str(file), *map(str, (batch, *input_shape, threads))]
        done = subprocess.run(
            [sys.executable, "-c", "from amc.latency.timing.peak_memory import child; child()", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else None


def _grown_by(name: str, file: Path, batch: int, input_shape: Shape, threads: int) -> int:
    import numpy as np

    from amc.latency.registry import get_backend

    backend = get_backend(name)
    assert isinstance(backend, FileBackend)
    backend.runtime()
    images = np.zeros((batch, *input_shape), dtype=np.float32)
    _give_free_memory_back()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _status("VmRSS")
    run = backend.load(file.read_bytes(), images, threads)
    for _ in range(3):
        run()
    return _status("VmHWM") - before


def _give_free_memory_back() -> None:
    """Return what imports left free in the heap to the kernel, lest the network fits into it unseen."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int:
    """A figure of this process in bytes; the kernel tells KiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def child() -> None:
    """Print the growth of this process in bytes; the arguments are the backend, file, shape and threads."""
    name, file, *numbers = sys.argv[1:]
    batch, channels, height, width, threads = map(int, numbers)
    print(_grown_by(name, Path(file), batch, (channels, height, width), threads))
