"""What strangers make: run folders that name code, checkpoints that are no plain tensors, odd pictures."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amc.third_party import without_warnings
from experiments.benchmark.faults.bench import AGAIN, JOB, Bench, Fault, command
from experiments.config.stages import STAGES

SETTINGS = (
    *("model=evil.make", "model=subprocess.getoutput", "model=os.system", "model.name=evil.make"),
    *("reward=evil.score", "reward=antigravity.fly", "model.kwargs={_target_: evil.make}"),
    *("+hydra.callbacks.x._target_=evil.Callback", "hydra/launcher=evil", "hydra.run.dir=elsewhere"),
    *(
        "+hydra.job_logging.handlers.x.class=evil.Handler",
        "latency.ssh.options=['-oProxyCommand=touch marker']",
    ),
    *("latency.ssh.host=evil", "latency.adb.runner=/bin/sh", "latency.adb.arguments=x", "tracker=wandb"),
    *("workers.address=evil:1", "name=${oc.env:SECRET}", "model.kwargs.x=${oc.env:SECRET}", "--multirun"),
    *("--config-dir=.", "~tracker", "data.root=/", "model.checkpoint=/etc/passwd", "strategy=/etc/passwd"),
    *("profile.tables=/tmp", "data.search_val_dir=../..", "run_dir=elsewhere", "seed=1,2", "agent=../evil"),
)
LINKED = (
    "search.jsonl",
    "evaluations.jsonl",
    "strategy.json",
    ".lock",
    "amc.log",
    "stages",
    ".hydra",
    "exports",
)
BESIDE = ("ray", "timm", "numpy", "json", "torch", "coremltools", "multiprocessing", "sitecustomize", "wandb")


def faults() -> Iterator[Fault]:
    """Yield the faults."""
    for text in SETTINGS:
        for stages in ("", *STAGES):
            name = f"{text}, {f'stages=[{stages}]' if stages else 'no stages'}"
            yield Fault("foreign folders", name, partial(_setting, text, stages))
    for name in LINKED:
        yield Fault("foreign folders", f"{name} is a link", partial(_link, name))
    for name in BESIDE:
        yield Fault("foreign folders", f"{name}.py lies beside the files", partial(_beside, name))
    for name, make in CHECKPOINTS.items():
        for key in ("model.checkpoint", "model.start"):
            yield Fault("checkpoints", f"{key}: {name}", partial(_checkpoint, key, make))
    for name, content in PICTURES.items():
        for skipped in (False, True):
            yield Fault(
                "pictures", name + (", skipped" if skipped else ""), partial(_picture, content, skipped)
            )


def _evil(cwd: Path, name: str = "evil") -> Path:
    marker = cwd / "marker"
    (cwd / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return marker


def _setting(text: str, stages: str, bench: Bench) -> str | None:
    cwd = bench.copy()
    marker, path = _evil(cwd), cwd / "run/overrides.json"
    memory = json.loads(path.read_text())
    memory["overrides"] = [o for o in memory["overrides"] if not o.startswith("model=")] + [text]
    path.write_text(json.dumps({**memory, "signature": None}))
    ended = command(["run_dir=run", *([f"stages=[{stages}]"] if stages else [])], cwd)
    if marker.exists() or (cwd / "elsewhere").exists():
        return "its code ran"
    return ended.fault if ended.status else "accepted"


def _link(name: str, bench: Bench) -> str | None:
    cwd = bench.copy()
    outside, inside = cwd / "outside", cwd / "run" / name
    os.rename(inside, outside) if inside.exists() else outside.mkdir()
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    if outside.is_file():
        before[outside] = outside.read_bytes()
    inside.symlink_to(outside)
    ended = command(["run_dir=run", AGAIN], cwd)
    after = {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()}
    return "a file elsewhere was changed" if after != before else ended.fault


def _beside(name: str, bench: Bench) -> str | None:
    cwd = bench.copy()
    marker = _evil(cwd / "run", name)
    path = cwd / "run/overrides.json"
    memory = json.loads(path.read_text())
    memory["overrides"] = [o for o in memory["overrides"] if not o.startswith("model=")]
    path.write_text(json.dumps({**memory, "signature": None}))
    ended = command(["run_dir=.", "stages=[inspect]"], cwd / "run")
    return "it was imported" if marker.exists() else ended.fault


# --- checkpoints


def _tensors() -> dict[str, Any]:
    return {"0.weight": torch.zeros(8, 3, 3, 3)}


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch marker",)


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.eye(4), 1.0, 0, torch.qint8)


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "an expanded tensor": lambda: _saved({"0.weight": torch.zeros(1).expand(2**33)}),
    "a sparse tensor": lambda: _saved({"0.weight": torch.eye(4).to_sparse()}),
    "a sparse rows tensor": lambda: _saved({"0.weight": torch.eye(4).to_sparse_csr()}),
    "a quantised tensor": lambda: _saved(
        {"0.weight": torch.quantize_per_tensor(torch.eye(4), 1, 0, torch.qint8)}
    ),
    "a meta tensor": lambda: _saved({"0.weight": torch.zeros(4, device="meta")}),
    "complex numbers": lambda: _saved({"0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.complex64)}),
    "TorchScript": _script,
    "a whole module": lambda: _saved(torch.nn.Linear(2, 2)),
    "code in a pickle": lambda: pickle.dumps({"0.weight": _Code()}),
    "code in a torch file": lambda: _saved({"0.weight": _Code()}),
    "a raw pickle": lambda: pickle.dumps({"a": [1, 2]}),
    "an empty file": lambda: b"",
    "rubbish": lambda: os.urandom(5000),
    "half a file": lambda: _saved(_tensors())[:700],
    "no tensors": lambda: _saved({}),
    "a list": lambda: _saved([1, 2, 3]),
    "a tensor": lambda: _saved(torch.zeros(3)),
    "numbers for names": lambda: _saved({1: torch.zeros(3)}),
    "deep nesting": lambda: _saved({"state_dict": {"state_dict": {"state_dict": {"a": 1}}}}),
    "not finite": lambda: _saved({"0.weight": torch.full((8, 3, 3, 3), torch.nan)}),
    "a zip file": lambda: b"PK\x05\x06" + b"\0" * 18,
}


def _checkpoint(key: str, make: Callable[[], bytes], bench: Bench) -> str | None:
    cwd = bench.empty("checkpoint")
    with without_warnings():
        (cwd / "odd.pth").write_bytes(make())
    ended = command([*JOB, f"{key}=odd.pth", "stages=[train]", "run_dir=run"], cwd)
    if (cwd / "marker").exists():
        return "its code ran"
    return ended.fault if ended.status else "accepted"


# --- pictures


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


_ROWS = zlib.compress((b"\0" + b"\x80" * 24) * 8)
PICTURES = {
    "empty": b"",
    "rubbish": bytes(range(256)) * 4,
    "PGM with rubbish": b"P5\nx y z\n",
    "PPM with rubbish": b"P6\n8 8\n99999999\n" + b"\0" * 10,
    "PPM without pixels": b"P6\n8 8\n255\n",
    "PGM of negative size": b"P5\n-8 8\n255\n" + b"\0" * 64,
    "PNG with half a header": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00",
    "PNG without pixels": _png(8, 8),
    "PNG of a billion pixels": _png(40_000, 40_000, _chunk(b"IDAT", _ROWS)),
    "PNG of no pixel": _png(0, 0, _chunk(b"IDAT", _ROWS)),
    "PNG with half of its rows": _png(8, 8, _chunk(b"IDAT", _ROWS[:10])),
    "PNG with a text of 100 MB": _png(
        8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 100_000_000)), _chunk(b"IDAT", _ROWS)
    ),
    "PNG with a wrong checksum": _png(8, 8, _chunk(b"IDAT", _ROWS)[:-1] + b"\0"),
    "JPEG with half a header": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "GIF of one byte": b"GIF89a",
    "TIFF with rubbish": b"II*\x00" + b"\xff" * 40,
    "WebP with rubbish": b"RIFF\x10\x00\x00\x00WEBPVP8 " + b"\xff" * 20,
    "a text": b"no picture\n",
    "a program in PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "a drawing in SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "BMP of a billion pixels": b"BM"
    + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 40_000, 40_000, 1, 24, *[0] * 6),
    "TIFF whose pages go round": b"II*\x00\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0",
}


def _picture(content: bytes, skipped: bool, bench: Bench) -> str | None:
    from PIL import Image

    cwd = bench.empty("pictures")
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = cwd / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(12):
                Image.new("RGB", (10, 10), (9 * number, 80, 20)).save(folder / f"{number}.png")
    (cwd / "data/train/a/odd.png").write_bytes(content)
    job = [o for o in JOB if not o.startswith("data")]
    job += ["data=imagefolder", "data.root=data", "data.image_size=8", "data.search_val=4", "data.workers=0"]
    job += ["data.calibration=8", "data.batch_size=4", f"data.skip_damaged={str(skipped).lower()}"]
    ended = command([*job, "stages=[train]", "run_dir=run"], cwd)
    if ended.fault is not None:
        return ended.fault
    if skipped:
        return None if ended.status == 0 else ended.err
    return None if ended.status == 0 or "odd.png" in ended.err else f"does not name the file: {ended.err}"
