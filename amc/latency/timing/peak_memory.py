"""Peak memory of a network in a runtime: the growth of a fresh process that loads and runs the file.

The growth is that of the resident set, from before the file is read to the peak over three runs. It holds the
file, the weights as the runtime packs them, the activations, and what the runtime itself loads at its first
network, which is the same for a dense and a pruned one. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from amc.latency.registry import get_backend
from amc.runtimes.protocol import FileBackend, Shape
from amc.third_party import return_free_memory

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # see proc(5), clear_refs
_CHILD = "from amc.latency.timing.peak_memory import print_growth; print_growth()"


def peak_memory(
    backend: FileBackend, content: bytes, input_shape: Shape, batch: int, threads: int
) -> int | None:
    """Return the peak in bytes; None if the system does not report it, or the file does not run.

    Args:
        backend: A runtime of the registry.
        content: The file.
        input_shape: One image, (C, H, W).
        batch: Images per call.
        threads: Threads the runtime may use.
    """
    if not _STATUS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        file.write_bytes(content)
        arguments = [backend.name, str(file), *map(str, (batch, *input_shape, threads))]
        done = subprocess.run(
            # -P: a file of the current directory would be imported in place of a package
            [sys.executable, "-P", "-c", _CHILD, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else None


def print_growth() -> None:
    """Print the growth of this process in bytes; its arguments are the backend, file, shape and threads."""
    name, file, *numbers = sys.argv[1:]
    batch, channels, height, width, threads = map(int, numbers)
    print(_growth(name, Path(file), batch, (channels, height, width), threads))


def _growth(name: str, file: Path, batch: int, input_shape: Shape, threads: int) -> int:
    import numpy as np

    backend = get_backend(name)
    assert isinstance(backend, FileBackend)
    backend.runtime()
    images = np.zeros((batch, *input_shape), dtype=np.float32)
    return_free_memory()  # otherwise the network would reuse that memory and the process would not grow
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _status("VmRSS")
    run = backend.load(file.read_bytes(), images, threads)
    for _ in range(3):
        run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Return a figure of this process in bytes; the kernel gives KiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
