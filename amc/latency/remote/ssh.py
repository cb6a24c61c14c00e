"""A remote host over ssh: a small script that is sent there times the ONNX files with onnxruntime."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, FileError, SettingError
from amc.latency.portable.onnx_job import spread
from amc.latency.remote.commands import LONGEST, command, leftovers_told
from amc.latency.remote.protocol import RemoteTimes
from amc.reading import parse_json
from amc.runtimes.onnx_file import onnx_bytes
from amc.runtimes.protocol import TOLERANCES, Shape
from amc.runtimes.reference import check_agreement, eager_logits, random_batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_NO_HOST = "host is not set: name one that ssh reaches"
_ANSWER = {
    "outputs": {...: {"shape": [int], "values": [...]}},
    "samples_ms": {...: [float]},
    "repeats": int,
    **dict.fromkeys(("clock", "device", "version"), str),
    "notes": [str],
}
"""What the host prints; see ``amc.reading``."""
_JOB = "latency/portable/onnx_job.py"
_ENVIRONMENT = "env ORT_DISABLE_TELEMETRY=1"
"""Before the Python there, which is otherwise started as its user starts it."""
SENT = (
    "latency/portable/machine.py",
    _JOB,
    "latency/portable/rounds.py",
    "runtimes/onnx_session.py",
)
"""Files of the package ``amc`` that the host runs; they import nothing else of it."""


@dataclass(frozen=True)
class SshSettings:
    """How a host is reached, and which Python runs there.

    Attributes:
        host: Destination for ``ssh``, such as ``pi@192.168.1.5`` or a name of ~/.ssh/config; it must not ask
            for a password.
        python: Python there, at least 3.8, with numpy and onnxruntime; a path such as ``venv/bin/python`` or
            ``~/venv/bin/python`` starts at the home folder.
        options: Further arguments of ``ssh``, such as ``-p`` and ``2222``; they take the place of
            ``BatchMode=yes`` and ``ConnectTimeout=10``, which follow them: ssh takes the first value.
        timeout: Seconds after which the upload is given up, and then the measurement.

    Raises:
        SettingError: The timeout is impossible.
    """

    host: str | None = None
    python: str = "python3"
    options: tuple[str, ...] = ()
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST:
            raise SettingError(
                f"latency.ssh.timeout is {self.timeout:g}; expected seconds above 0, at most {LONGEST:g}"
            )


@dataclass(frozen=True)
class Ssh:
    """ONNX Runtime's CPU provider on a remote host: float32, timed there as on this machine."""

    settings: SshSettings = SshSettings()
    name: str = "ssh"
    precision: str = "float32"

    @property
    def setup(self) -> str:
        """The host, its Python and how it is reached: the latency depends on them."""
        settings = self.settings
        options = f", options {shlex.join(settings.options)}" if settings.options else ""
        return f"host {settings.host or 'none'}, python {settings.python}{options}"

    def available(self) -> str | None:
        """Return None if the host answers and has numpy and onnxruntime, else the reason in one line."""
        if self.settings.host is None:
            return _NO_HOST
        try:
            self._there(f"{_ENVIRONMENT} {self._python} -c 'import numpy, onnxruntime'")
        except AmcError as error:
            return str(error)
        return None

    def times_ms(
        self,
        models: Mapping[str, nn.Module],
        input_shapes: Mapping[str, Shape],
        *,
        batch: int,
        threads: int,
        rounds: int,
    ) -> RemoteTimes:
        """Send the networks, time them there, and compare what comes back of their outputs with eager's.

        Raises:
            AmcError: A network does not convert, the host fails, or its outputs differ from eager's.
        """
        contents = {name: onnx_bytes(model, input_shapes[name]) for name, model in models.items()}
        images = {name: random_batch(input_shapes[name], batch) for name in models}
        job = {
            "models": {
                name: {"file": f"{i}.onnx", "images": f"{i}.bin", "shape": list(images[name].shape)}
                for i, name in enumerate(models)
            },
            "threads": threads,
            "rounds": rounds,
            "warmup": 5,
            "min_round_seconds": 0.02,
            "ends_with_input": True,
        }
        files = {"job.json": json.dumps(job).encode()}
        for i, name in enumerate(models):
            files |= {f"{i}.onnx": contents[name], f"{i}.bin": images[name].numpy().tobytes()}
        found = self._run(files)
        for name, model in models.items():
            if name not in found["outputs"] or len(found["samples_ms"].get(name, ())) != rounds:
                raise AmcError(f"ssh {self.settings.host}: the answer lacks outputs or times of {name}")
            eager = eager_logits(model, images[name])
            whole = _completed(found["outputs"][name], eager)
            check_agreement(whole, eager, TOLERANCES[self.precision], f"ssh ({name})")
        return RemoteTimes(
            samples_ms=found["samples_ms"],
            repeats=found["repeats"],
            clock=found["clock"],
            device=f"{self.settings.host}: {found['device']}",
            version=f"onnxruntime {found['version']}",
            file_bytes={name: len(content) for name, content in contents.items()},
            notes=tuple(found["notes"]),
        )

    def _run(self, files: Mapping[str, bytes]) -> dict[str, Any]:
        folder = self._folder()
        place, timeout = shlex.quote(folder), self.settings.timeout
        try:
            self._there(f"tar -xf - -C {place}", stdin=_archive(files), timeout=timeout)
            # A file and not -m: with that, a package `amc` in the home folder would be imported in its place.
            job = f"{place}/amc/{_JOB} {place}/job.json"
            printed = self._there(f"{_ENVIRONMENT} {self._python} {job}", stdin=None, timeout=timeout)
        finally:
            with leftovers_told(f"{folder} on {self.settings.host}"):
                self._there(f"rm -rf {place}")
        last = (printed.strip().splitlines() or [""])[-1]
        try:
            found: dict[str, Any] = parse_json(
                last, _ANSWER, f"the answer of {self.settings.host}", "run it again"
            )
        except FileError as error:
            raise AmcError(f"ssh {self.settings.host}: {error}; got {printed[-80:]!r}") from error
        return found

    def _folder(self) -> str:
        """Make a temporary folder there, and return its path; what a greeting prints comes before it."""
        printed = self._there("mktemp -d").strip()
        folder = (printed.splitlines() or [""])[-1].strip()
        if not folder.startswith("/"):
            raise AmcError(
                f"ssh {self.settings.host}: mktemp -d printed {printed[-80:]!r}, expected a path in "
                "its last line that starts with /: likely the start files of the shell there print something"
            )
        return folder

    @property
    def _python(self) -> str:
        """The Python there as a word of its shell, which is to replace ``~``."""
        home, slash, path = self.settings.python.partition("/")
        if slash and re.fullmatch(r"~[\w.-]*", home):
            return f"{home}/{shlex.quote(path)}"
        return shlex.quote(self.settings.python)

    def _there(self, line: str, *, stdin: bytes | None = b"", timeout: float = 60.0) -> str:
        """Run a line of the remote shell."""
        settings = self.settings
        if settings.host is None:
            raise SettingError(_NO_HOST)
        options = [*settings.options, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        return command(
            ["ssh", *options, settings.host, line], f"ssh {settings.host}", stdin=stdin, timeout=timeout
        )


def _completed(output: Mapping[str, Any], eager: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return eager's outputs with the values of the host in their places (``onnx_job.spread``).

    Args:
        output: ``shape``, and ``values``, a part of the host's.
        eager: The outputs of eager PyTorch, of any shape.

    Raises:
        AmcError: the shapes differ, or the values are too few or no numbers.
    """
    import numpy as np  # here: `amc --help` imports this module

    if tuple(output["shape"]) != eager.shape:
        raise AmcError(f"ssh: the outputs have the shape {output['shape']}, expected {list(eager.shape)}")
    whole = eager.copy().reshape(-1)
    places = spread(whole.size)
    try:
        values = np.array(output["values"], dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise AmcError(f"ssh: the outputs that came back are no numbers: {str(error)[:80]}") from error
    if values.shape != whole[places].shape:
        raise AmcError(f"ssh: {values.size} values of an output came back, expected {whole[places].size}")
    whole[places] = values
    return whole.reshape(eager.shape)


def _archive(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of ``files`` and of ``SENT``, as a package that hides an installed one."""
    source = Path(__file__).parents[2]
    package = {f"amc/{name}": (source / name).read_bytes() for name in SENT}
    folders = {parent for name in package for parent in Path(name).parents if parent.name}
    package |= {f"{folder}/__init__.py": b"" for folder in folders}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {**package, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
