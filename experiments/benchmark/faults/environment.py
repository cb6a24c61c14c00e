"""Signals at any moment, a closed pipe, odd paths, no home, a folder that is read-only, a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from experiments.benchmark.faults.bench import JOB, PACKAGES, SECONDS, Bench, Fault, Outcome, command

PATHS = ("a,b", "my dir (1)", "it's", 'a"b', "Bücher", "a=b", "[x]", "{x}", "a b  c", "12", "x" * 200)
LONG = ("x" * 300, "/".join(["y" * 100] * 50))
DELAYS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0)


def faults() -> Iterator[Fault]:
    """Yield the faults."""
    for seconds in DELAYS:
        for number in (signal.SIGINT, signal.SIGTERM):
            name = f"{number.name} after {seconds} s"
            yield Fault("environment", name, partial(_signalled, number, seconds))
    for path in PATHS:
        yield Fault("environment", f"run_dir={path[:20]}", partial(_path, path))
    yield Fault("environment", "run_dir=null", partial(_refused, "run_dir=null"))
    for path in LONG:
        yield Fault("environment", f"a run_dir of {len(path)} letters", partial(_refused, f"run_dir={path}"))
    for space in (0, 1, 10, 50, 200):
        yield Fault("environment", f"files of at most {space} KiB", partial(_full, space))
    yield Fault("environment", "closed pipe", _closed)
    yield Fault("environment", "no home", _homeless)
    yield Fault("environment", "run_dir is a file", _file)
    yield Fault("environment", "few open files", _few_files)


def _job(*arguments: str) -> list[str]:
    return [*JOB, *(arguments or ("stages=[train,search,prune]", "run_dir=run"))]


def _signalled(number: signal.Signals, seconds: float, bench: Bench) -> str | None:
    """Start the command as the console script does, in a new process."""
    cwd = bench.empty("signalled")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "experiments.start", *_job()],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": PACKAGES},
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return "it did not end"
    if process.returncode in (0, -number) or (process.returncode == 130 and err.count("\n") == 1):
        return None
    last = (err.strip().splitlines() or [""])[-1]
    if "experiments" not in err:  # Python itself was starting
        return None
    return f"status {process.returncode}, {err.count(chr(10))} lines, the last: {last[:200]}"


def _path(path: str, bench: Bench) -> str | None:
    cwd = bench.empty("path")
    first = command(_job(f"run_dir={path}", "stages=[train]"), cwd)
    if first.status != 0 or not (cwd / path / "dense.safetensors").exists():
        return f"the folder was not used: {first.err.strip()[-200:]}"
    weights = (cwd / path / "dense.safetensors").read_bytes()
    again = command([f"run_dir={path}", "stages=[inspect]"], cwd)
    if again.status != 0:
        return f"it cannot be taken up again: {again.err.strip()[-200:]}"
    checkpoint = command(
        _job(f"model.checkpoint={path}/dense.safetensors", "stages=[train]", "run_dir=other"), cwd
    )
    resumed = command(["run_dir=other", "stages=[inspect]"], cwd)
    if checkpoint.status or resumed.status:
        return f"a checkpoint in it is not found again: {(checkpoint.err + resumed.err).strip()[-200:]}"
    same = (cwd / path / "dense.safetensors").read_bytes() == weights
    return None if same else "the dense network was trained anew"


def _refused(setting: str, bench: Bench) -> str | None:
    ended = command(_job(setting, "stages=[train]"), bench.empty("refused"))
    return ended.fault if ended.status else "accepted"


def _full(space: int, bench: Bench) -> str | None:
    """Limit the size of files. What the command prints goes elsewhere: it is no file."""
    reader, writer = os.pipe()

    def limit() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writer, 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (space * 1024, space * 1024))

    ended = command(_job(), bench.empty("full"), before=limit)
    os.close(writer)
    with open(reader) as messages:
        return Outcome(ended.status, "", messages.read()).fault


def _few_files(bench: Bench) -> str | None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    return command(_job(), bench.empty("few"), before=limit).fault


def _closed(bench: Bench) -> str | None:
    def close() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    ended = command(_job(), bench.empty("closed"), before=close)
    return (
        None if ended.status == 141 and ended.err.count("\n") == 1 else f"{ended.status}: {ended.err[-200:]}"
    )


def _homeless(bench: Bench) -> str | None:
    def forget() -> None:
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)

    return command(_job(), bench.empty("homeless"), before=forget).fault


def _file(bench: Bench) -> str | None:
    cwd = bench.empty("file")
    (cwd / "run").write_text("a file")
    ended = command(_job(), cwd)
    return ended.fault if ended.status else "accepted"
