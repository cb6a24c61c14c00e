"""Every file that a run leaves, damaged in every way: refused in one line, or made again."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmark.faults.bench import AGAIN, Bench, Fault, command, results

Damage = Callable[[bytes], bytes]

FILES = (
    *("strategy.json", "search.jsonl", "evaluations.jsonl", "correlate.jsonl", "overrides.json"),
    *("provenance.json", "dense.safetensors", "pruned.safetensors", "model.safetensors"),
    *("train.ckpt.safetensors", "finetune.ckpt.safetensors", "compare-strategy.ckpt.safetensors"),
    *(f"stages/{name}.json" for name in ("train", "search", "prune", "finetune", "compare", "correlate")),
    *(f"stages/{name}.json" for name in ("evaluate", "export", "report")),
    *(".hydra/config.yaml", "pareto.json", "report.json", "report.html"),
)
ANY: dict[str, Damage] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "rubbish": lambda content: bytes(range(256)) * 8,
    "rubbish at the end": lambda content: content + b"}{ damaged: [\n",
    "zeros": lambda content: b"\0" * len(content),
    "zeros inside": lambda content: content[:20] + b"\0" * 20 + content[40:],
    "twice": lambda content: content * 2,
    "no UTF-8": lambda content: b"\xff\xfe" + content,
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "ends of lines of Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "UTF-16": lambda content: content.decode(errors="replace").encode("utf-16"),
    "half of a character": lambda content: content.replace(b': "', b': "\\ud800'),
    "a line is missing": lambda content: b"".join(content.splitlines(True)[1:]),
    "the lines in reverse": lambda content: b"".join(content.splitlines(True)[::-1]),
    "a line comes again": lambda content: b"".join(content.splitlines(True)[:1]) + content,
}
SPECIAL: dict[str, Callable[[Path], None]] = {
    "is a folder": lambda path: path.mkdir(),
    "is a full folder": lambda path: (path / "inner").mkdir(parents=True),
    "is a pipe": os.mkfifo,
    "is a socket": lambda path: _socket(path),
}
"""What stands in the place of a file."""
TEXTS: dict[str, bytes] = {
    "null": b"null\n",
    "list": b"[]\n",
    "object": b"{}\n",
    "text": b'"text"\n',
    "number": b"1\n",
    "deep list": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "deep object": b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"\n",
    "NaN": b"NaN\n",
    "many digits": b"1" * 10_000 + b"\n",
}
WRONG: dict[str, Any] = {
    "text": "x",
    "null": None,
    "list": [],
    "object": {},
    "huge": 10**300,
    "negative": -1,
    "infinite": 1e999,
    "deep": json.loads("[" * 60 + "]" * 60),
    "true": True,
    "a fraction": 0.5,
}
"""Values put in the place of each top-level field."""


def faults() -> Iterator[Fault]:
    """Yield the faults."""
    for name in FILES:
        for what, damage in ANY.items():
            yield Fault("damaged files", f"{name}: {what}", partial(_attempt, name, damage))
        for what, make in SPECIAL.items():
            yield Fault("damaged files", f"{name} {what}", partial(_replaced_by, name, make))
        if name.endswith((".json", ".jsonl")):
            for what, text in TEXTS.items():
                damage = partial(_replaced, text)
                yield Fault("damaged files", f"{name}: {what}", partial(_attempt, name, damage))
            for what, value in WRONG.items():
                damage = partial(_fields, value)
                yield Fault("damaged files", f"{name}: fields are {what}", partial(_attempt, name, damage))


def _replaced(text: bytes, content: bytes) -> bytes:
    return text


def _fields(value: Any, content: bytes) -> bytes:
    """Put a value in the place of every field of the first object of a file."""
    end = content.find(b"\n") if content.startswith(b'{"') else len(content)
    fields = json.loads(content[:end])
    return json.dumps(dict.fromkeys(fields, value)).encode() + (content[end:] or b"\n")


def _attempt(name: str, damage: Damage, bench: Bench) -> str | None:
    cwd = bench.copy()
    path: Path = cwd / "run" / name
    if not path.exists():
        return "the run has no such file"
    path.write_bytes(damage(path.read_bytes()))
    return _judged(bench, cwd)


def _replaced_by(name: str, make: Callable[[Path], None], bench: Bench) -> str | None:
    cwd = bench.copy()
    path = cwd / "run" / name
    if not path.exists():
        return "the run has no such file"
    path.unlink()
    make(path)
    return _judged(bench, cwd)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the whole path may be too long for a socket


def _judged(bench: Bench, cwd: Path) -> str | None:
    """Run the stages again on a copy of the finished run; return what was wrong, or None."""
    ended = command(["run_dir=run", AGAIN], cwd, seconds=100)
    if ended.fault is not None or ended.status != 0:
        return ended.fault
    expected, found = results(bench.finished / "run"), results(cwd / "run")
    differs = sorted(key for key in expected if found.get(key) != expected[key])
    return f"accepted, and {', '.join(differs)} differ" if differs else None
