"""Times ONNX files on the host that it is started on: ``python amc/latency/portable/onnx_job.py JOB.json``.

It needs numpy and onnxruntime. It is copied to a remote host with ``machine.py``, ``rounds.py`` and
``runtimes/onnx_session.py``. The job lists the models, the threads and the rounds. The output is one line of
JSON with the samples and a part of the outputs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the package around this file comes before any other on the host's own path
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from amc.latency.portable.machine import clock_notes, cpu_model
from amc.latency.portable.rounds import interleaved
from amc.runtimes.onnx_session import open_session

MOST_VALUES = 1000
"""Values of an output that are sent back; all of them would be up to hundreds of MiB of JSON for a layer."""


def spread(size: int) -> slice:
    """Return which of an output's ``size`` values, in row-major order, are sent back: at most MOST_VALUES.

    They are evenly spaced. The step is odd, so that it meets all columns of images of even width.
    """
    return slice(None, None, -(-size // MOST_VALUES) | 1)


def time_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a job whose files are in ``folder``; return milliseconds, outputs and notes in plain types."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # no reports over the network
    import numpy as np
    import onnxruntime

    runs, outputs = {}, {}
    for name, entry in job["models"].items():
        session = open_session(onnxruntime, (folder / entry["file"]).read_bytes(), job["threads"])
        images = np.fromfile(folder / entry["images"], dtype=np.float32).reshape(entry["shape"])
        feed = {session.get_inputs()[0].name: images}
        runs[name] = lambda session=session, feed=feed: session.run(None, feed)[0]
        found = runs[name]()
        outputs[name] = {"shape": list(found.shape), "values": found.reshape(-1)[spread(found.size)].tolist()}
    clock = time.process_time if job["threads"] == 1 else time.perf_counter
    samples, repeats = interleaved(runs, job["rounds"], job["warmup"], job["min_round_seconds"], clock)
    return {
        "samples_ms": samples,
        "repeats": repeats,
        "clock": clock.__name__,
        "outputs": outputs,
        "device": cpu_model(),
        "version": onnxruntime.__version__,
        "notes": clock_notes(),
    }


def end_with_input() -> None:
    """End this process, from now on, once its standard input is closed, as ssh does with the connection."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the process ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    asked = json.loads(job_file.read_text())
    if asked["ends_with_input"]:
        end_with_input()
    print(json.dumps(time_job(asked, job_file.parent)))
