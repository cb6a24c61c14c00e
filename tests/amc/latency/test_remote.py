"""A phone and a remote host, played by programs on PATH that run what they are sent on this machine."""

import ast
import functools
import io
import os
import re
import shlex
import shutil
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.latency import RemoteBackend, compare, get_backend, ratio, time_models
from amc.latency.prediction.profile import target_of
from amc.latency.remote import adb as adb_module
from amc.latency.remote import ssh as ssh_module
from amc.latency.remote.adb import RUNNERS, Adb, AdbSettings, parse_ms
from amc.latency.remote.commands import command
from amc.latency.remote.protocol import setup_of
from amc.latency.remote.ssh import Ssh, SshSettings
from amc.runtimes.onnx_file import onnx_bytes
from amc.runtimes.protocol import FileRuntime
from amc.runtimes.reference import eager_logits, random_batch
from tests.params import slow

SHAPE = (3, 16, 16)

# A phone: its folder is one of this machine, its properties are files in the folder `phone`.
ADB = """
import os, shutil, subprocess, sys
arguments, phone = sys.argv[1:], os.environ["PHONE"]
with open(f"{phone}/calls", "a") as calls:
    print(*arguments, file=calls)
serial = "R5"
if arguments[0] == "-s":
    serial, arguments = arguments[1], arguments[2:]
if serial != "R5":
    sys.exit(f"adb: device '{serial}' not found")
state = open(f"{phone}/state").read()
if state != "device":
    sys.exit(f"error: {state}")
place = lambda text: text.replace("/data/local/tmp", f"{phone}/data")
if arguments[0] == "get-state":
    print(state)
elif arguments[0] == "push":
    shutil.copyfile(arguments[1], place(arguments[2]))
    print("1 file pushed")
else:
    assert arguments[0] == "shell"
    environment = {**os.environ, "PATH": f"{phone}/bin:" + os.environ["PATH"]}
    sys.exit(subprocess.run(["sh", "-c", place(arguments[1])], env=environment).returncode)
"""
DUMPSYS = """#!/bin/sh
echo "Current Battery Service state:"
echo "  temperature: $(head -1 $PHONE/temperatures)"
test $(wc -l < $PHONE/temperatures) -gt 1 && sed -i 1d $PHONE/temperatures
exit 0
"""
# A benchmark binary: an inference takes a microsecond for each byte of the file.
RUNNER = f"""#!{sys.executable}
import os, re, sys
given = dict(re.findall("--([a-z_]+)=(\\S+)", " ".join(sys.argv)))
assert (given["num_threads"], given["num_runs"]) == ("1", "20")
mean = os.path.getsize(given["graph"])
print(f"INFO: Inference timings in us: Init: 1, First inference: 2, Inference (avg): {{mean}}")
"""
# A host: the last argument is what a shell there would read.
SSH = """
import os, subprocess, sys
host, line = sys.argv[-2:]
with open(os.environ["HOST_CALLS"], "a") as calls:
    print(*sys.argv[1:], file=calls)
if host == "nowhere":
    sys.exit("ssh: Could not resolve hostname nowhere: Name or service not known")
home = os.environ["HOST_HOME"]
environment = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "HOME": home}
sys.exit(subprocess.run(["sh", "-c", line], cwd=home, env=environment).returncode)
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@functools.cache
def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def pickled(model, input_shape, batch) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


def unpickled(content, images, threads):
    model = torch.load(io.BytesIO(content), weights_only=False)
    return lambda: model(torch.from_numpy(images)).detach()


TWIN = FileRuntime("twin", (), lambda: "1", lambda: torch, pickled, unpickled)
"""Stands for the runtime of this machine that checks the file: converting with a real one takes seconds."""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNNERS, "litert", replace(RUNNERS["litert"], twin=TWIN))
    folder = tmp_path / "phone"
    program(tmp_path / "bin/adb", ADB)
    program(folder / "bin/dumpsys", DUMPSYS)
    program(folder / "bin/getprop", "#!/bin/sh\ncase $1 in *model) echo Pixel 9;; *) echo 16;; esac\n")
    (folder / "data").mkdir()
    (folder / "state").write_text("device")
    (folder / "temperatures").write_text("305\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(folder))
    monkeypatch.setattr(adb_module, "_POLL_SECONDS", 0.0)
    return folder


@pytest.fixture
def runner(tmp_path):
    return str(program(tmp_path / "benchmark_model", RUNNER))


@functools.cache
def exported(model, input_shape) -> bytes:
    return onnx_bytes(model, input_shape)


@pytest.fixture
def host(tmp_path, monkeypatch):
    program(tmp_path / "bin/ssh", SSH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOST_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("HOST_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(ssh_module, "onnx_bytes", exported)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_a_phone_runs_the_pushed_files_and_keeps_none(phone, runner):
    (phone / "temperatures").write_text("391\n372\n349\n330\n")
    settings = AdbSettings(runner=runner, serial="R5", cores="1", runs=20)
    assert isinstance(Adb(settings), RemoteBackend)
    (result,) = compare(net(256), net(8), SHAPE, backends=[Adb(settings)], rounds=2)
    assert result.unavailable is None
    microseconds = result.file_bytes["dense"]
    assert result.comparison.dense.samples_ms == pytest.approx([microseconds / 1000] * 2)
    assert result.comparison.speedup == microseconds / result.file_bytes["pruned"] > 1.5
    assert result.comparison.dense.repeats == 20
    assert (result.device, result.version) == ("Pixel 9", "benchmark_model on Android 16")
    assert result.notes[1:] == ("33.0 to 34.9 degrees Celsius at the start of a round", "cores: 1")
    assert list((phone / "data").iterdir()) == []
    calls = (phone / "calls").read_text().splitlines()
    assert all(call.startswith("-s R5 ") for call in calls)
    rounds = [re.search(r"--graph=(\d)", call)[1] for call in calls if "taskset 1 ./runner" in call]
    assert "".join(rounds) == "01" + "10"


@pytest.mark.slow
def test_what_a_phone_runs_and_how_it_is_read_is_part_of_the_target(phone, runner, tmp_path):
    usual = AdbSettings(runner=runner, runs=20)
    rebuilt = str(program(tmp_path / "rebuilt/benchmark_model", f"{RUNNER}# built anew\n"))
    pattern = r"Inference \(avg\): (?P<ms>[\d.e+]+)"
    changes = (
        *({}, {"cores": "1"}, {"arguments": RUNNERS["litert"].arguments + " --v=1"}, {"serial": "R5"}),
        *({"runner": rebuilt}, {"pattern": pattern}),
    )
    targets = [target_of(Adb(replace(usual, **change)), 1, 1) for change in changes]
    assert len({target.file_name for target in targets}) == len(changes)
    assert Adb(replace(usual, runs=21)).setup != Adb(usual).setup
    moved = shutil.copy(runner, tmp_path / "moved")
    assert Adb(replace(usual, runner=str(moved))).setup == Adb(usual).setup
    assert Adb(AdbSettings(format="onnx", runs=20)).setup == "cores any, onnx, 20 runs"


def test_the_host_and_its_python_are_part_of_what_is_measured():
    changes = ({}, {"host": "attic"}, {"python": "venv/bin/python"}, {"options": ("-p", "2222")})
    setups = {setup_of(Ssh(SshSettings(**{"host": "board", **change}))) for change in changes}
    assert len(setups) == 4
    assert "host board, python python3" in setups


def test_a_phone_that_stays_hot_is_not_measured(phone, runner):
    (phone / "temperatures").write_text("412\n")
    backend = Adb(AdbSettings(runner=runner, cool_seconds=0))
    with pytest.raises(
        AmcError, match=r"still at 41\.2 degrees after waiting for 0 s; .*at most max_celsius=35\.0"
    ):
        time_models({"one": net(8)}, SHAPE, backend, rounds=1)
    assert list((phone / "data").iterdir()) == []


def test_two_measurements_on_one_phone_share_no_folder(phone, runner):
    for _ in range(2):
        time_models({"one": net(8)}, SHAPE, Adb(AdbSettings(runner=runner, runs=20)), rounds=1)
    calls = (phone / "calls").read_text()
    assert len(set(re.findall(r"mkdir -p (\S+)", calls))) == 2
    assert set(re.findall(r"mkdir -p (\S+)", calls)) == set(re.findall(r"cd (\S+) &&", calls))
    assert list((phone / "data").iterdir()) == []


def test_the_named_thermal_zone_is_read(phone, runner, tmp_path):
    (tmp_path / "zone").write_text("36500\n")
    settings = AdbSettings(runner=runner, thermal_file=str(tmp_path / "zone"), cool_seconds=0)
    assert Adb(settings)._celsius() == 36.5
    (tmp_path / "zone").write_text("cold")
    with pytest.raises(AmcError, match="zone holds no temperature: 'cold'"):
        Adb(settings)._celsius()


@pytest.mark.parametrize(
    ("settings", "state", "reason"),
    [
        ({"runner": None}, "device", "latency.adb.runner is not set"),
        ({"runner": "/no/such/file"}, "device", "/no/such/file is not a file"),
        ({}, "device offline", "adb get-state: error: device offline"),
        ({}, "no devices/emulators found", "adb get-state: error: no devices/emulators found"),
        ({"serial": "R6"}, "device", "adb get-state: adb: device 'R6' not found"),
    ],
)
def test_why_a_phone_cannot_be_measured(phone, runner, settings, state, reason):
    (phone / "state").write_text(state)
    (result,) = compare(net(8), net(8), SHAPE, backends=[Adb(AdbSettings(**{"runner": runner, **settings}))])
    assert reason in result.unavailable
    assert "\n" not in result.unavailable
    assert result.comparison is None


def test_without_adb(runner, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Adb(AdbSettings(runner=runner)).available() == "adb get-state: adb is not on PATH"


def test_a_runner_that_prints_something_else_is_refused(phone, tmp_path):
    silly = str(program(tmp_path / "silly", "#!/bin/sh\necho illegal instruction\n"))
    with pytest.raises(AmcError, match=r"printed no time .*: illegal instruction") as error:
        time_models({"one": net(8)}, SHAPE, Adb(AdbSettings(runner=silly)), rounds=1)
    assert "\n" not in str(error.value)
    broken = str(program(tmp_path / "broken", "#!/bin/sh\necho cannot open; exit 1\n"))
    with pytest.raises(AmcError, match="adb shell: cannot open"):
        time_models({"one": net(8)}, SHAPE, Adb(AdbSettings(runner=broken)), rounds=1)


@pytest.mark.parametrize(
    ("format_name", "printed", "milliseconds"),
    [
        (
            "litert",
            "Init: 5388, First inference: 10172, Warmup (avg): 92755.2, Inference (avg): 90865.9",
            90.8659,
        ),
        ("litert", "Inference timings in us: Inference (avg): 1.2e+06", 1200.0),
        ("executorch", "I 00:00 Model executed successfully 50 time(s) in 125.500000 ms.", 2.51),
        (
            "onnx",
            "First inference time cost: 196 ms\nAverage inference time cost total: 98.961997 ms",
            98.961997,
        ),
        ("onnx", "Average inference time cost: 62.2935 ms\nNumber of inferences", 62.2935),
    ],
)
def test_the_output_of_known_binaries_is_read(format_name, printed, milliseconds):
    assert parse_ms(printed, RUNNERS[format_name].pattern) == pytest.approx(milliseconds)


def test_a_pattern_names_its_unit():
    assert parse_ms("took 0.5 s", r"took (?P<s>[\d.]+)") == 500
    with pytest.raises(AmcError, match="no group named s, ms or us"):
        parse_ms("took 0.5", r"took ([\d.]+)")
    with pytest.raises(AmcError, match="the pattern finds 'took long', but none of its groups"):
        parse_ms("took long", r"took ((?P<s>[\d.]+)|long)")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("format", "tflite"), ("cores", "4-7"), ("runs", 0), ("max_celsius", float("nan"))),
        *(("pattern", "("), ("pattern", "mean ([0-9.]+) ms"), ("pattern", "(?P<min>[0-9.]+)")),
    ],
)
def test_impossible_settings_of_a_phone(field, value):
    with pytest.raises(AmcError, match=f"latency.adb.{field} is"):
        AdbSettings(**{field: value})


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_impossible_times_to_wait_for_another_device(seconds):
    with pytest.raises(
        AmcError, match=r"latency\.ssh\.timeout is .*; expected seconds above 0, at most 1e\+09"
    ):
        SshSettings(timeout=seconds)
    if seconds != 0:
        with pytest.raises(AmcError, match=r"latency\.adb\.cool_seconds is .*; expected seconds, at most"):
            AdbSettings(cool_seconds=seconds)


class Leaving(Ssh):
    """A host that cannot remove what it was sent."""

    def _there(self, line, **given):
        if line.startswith("rm "):
            raise AmcError("ssh board: Connection refused")
        return super()._there(line, **given)


def test_what_cannot_be_removed_costs_no_answer_and_hides_no_error(host, phone, runner, caplog):
    backend = Leaving(SshSettings(host="board", python=sys.executable))
    assert set(time_models({"one": net(8)}, SHAPE, backend, rounds=1)) == {"one"}
    assert "on board is left there: ssh board: Connection refused" in caplog.text
    silent = program(host / "silent_python", "#!/bin/sh\necho no memory left >&2\nexit 1\n")
    with pytest.raises(AmcError, match="no memory left"):
        time_models({"one": net(8)}, SHAPE, Leaving(SshSettings(host="board", python=str(silent))), rounds=1)
    program(phone / "bin/rm", "#!/bin/sh\necho Read-only file system >&2\nexit 1\n")
    with pytest.raises(AmcError, match="still at 30"):
        time_models(
            {"one": net(8)}, SHAPE, Adb(AdbSettings(runner=runner, max_celsius=20, cool_seconds=0)), rounds=1
        )
    left = r"/data/local/tmp/amc-search-\w{8} on the phone is left there: adb shell: Read-only"
    assert re.search(left, caplog.text)


def test_a_job_ends_with_the_program_that_has_started_it(tmp_path):
    there = tmp_path / "pid"
    job = (
        "import os, pathlib, time; from amc.latency.portable.onnx_job import end_with_input\n"
        f"end_with_input(); pathlib.Path({str(there)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    started = f"{sys.executable} -c {shlex.quote(job)} <&3 >/dev/null 2>&1 &"
    line = f"exec 3<&0; {started} until [ -s {there} ]; do sleep 0.05; done; exit 3"
    with pytest.raises(AmcError, match="ssh: exit status 3"):
        command(["sh", "-c", line], "ssh", stdin=None, timeout=60)
    pid, deadline = int(there.read_text()), time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether a process that nobody waits for still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_host_times_with_its_own_onnxruntime_and_is_left_clean(host):
    before = set(host.iterdir())
    settings = SshSettings(host="pi@board", python=sys.executable, options=("-p", "2222"))
    assert Ssh(settings).available() is None
    found = time_models({"dense": net(256), "pruned": net(8)}, SHAPE, Ssh(settings), batch=2, rounds=3)
    assert ratio(found["dense"], found["pruned"]).speedup > 1.5
    assert found["dense"].repeats == found["pruned"].repeats > 1
    assert set(host.iterdir()) - before == {host / "calls"}
    for call in (host / "calls").read_text().splitlines():  # ssh takes the first value of an option
        assert call.startswith("-p 2222 -o BatchMode=yes -o ConnectTimeout=10 pi@board ")


@pytest.mark.parametrize("python", [slow("my env/bin/python"), "~/my env/bin/python"])
def test_the_python_of_a_host_lies_in_its_home(host, python):
    program(host / "home/my env/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (host / "home/amc").mkdir()  # an older copy of this package, which must not be imported
    (host / "home/amc/__init__.py").write_text("raise ImportError('the wrong package')")
    backend = Ssh(SshSettings(host="board", python=python))
    assert backend.available() is None
    assert set(time_models({"one": net(8)}, SHAPE, backend, rounds=1)) == {"one"}


def test_a_host_measures_with_the_path_that_was_checked(host):
    own = host / "home/own"
    (own / "amc").mkdir(parents=True)  # which must not be imported
    (own / "amc/__init__.py").write_text("raise ImportError('the wrong package')")
    (own / "sitecustomize.py").write_text(f"print('started', file=open({str(host / 'started')!r}, 'a'))")
    program(host / "bin/ssh", SSH.replace('"HOME": home', f'"HOME": home, "PYTHONPATH": {str(own)!r}'))
    backend = Ssh(SshSettings(host="board", python=sys.executable))
    assert backend.available() is None
    assert set(time_models({"one": net(8)}, SHAPE, backend, rounds=1)) == {"one"}
    assert (host / "started").read_text().split() == ["started"] * 2


def test_an_upload_may_take_as_long_as_a_measurement(host, monkeypatch):
    waits = {}

    def noted(arguments, what, *, stdin=b"", timeout=60.0):
        waits[arguments[-1].split()[0]] = timeout
        return command(arguments, what, stdin=stdin, timeout=timeout)

    monkeypatch.setattr(ssh_module, "command", noted)
    backend = Ssh(SshSettings(host="board", python=sys.executable, timeout=500.0))
    time_models({"one": net(8)}, SHAPE, backend, rounds=1)
    assert waits == {"mktemp": 60.0, "tar": 500.0, "env": 500.0, "rm": 60.0}


def test_a_host_that_computes_something_else_is_refused(host, monkeypatch):
    settings = SshSettings(host="board", python=sys.executable)
    real = Ssh._run

    def wrong(self, files):
        found = real(self, files)
        return {**found, "outputs": {"one": {"shape": [1, 4], "values": [0.0] * 4}}}

    monkeypatch.setattr(Ssh, "_run", wrong)
    with pytest.raises(AmcError, match=r"ssh \(one\) differs from eager"):
        time_models({"one": net(8)}, SHAPE, Ssh(settings), rounds=1)


def test_a_greeting_of_the_host_is_passed_over(host):
    program(host / "bin/ssh", f"print('Welcome to board', flush=True)\n{SSH}")
    backend = Ssh(SshSettings(host="board", python=sys.executable))
    before = set(host.iterdir())
    assert set(time_models({"one": net(8)}, SHAPE, backend, rounds=1)) == {"one"}
    assert set(host.iterdir()) - before == {host / "calls"}
    program(host / "bin/ssh", f"{SSH.replace('sys.exit(subprocess', '(subprocess')}\nprint('Goodbye')")
    with pytest.raises(AmcError, match=r"ssh board: mktemp -d printed '.*Goodbye', expected a path"):
        time_models({"one": net(8)}, SHAPE, backend, rounds=1)


def test_a_part_of_large_outputs_comes_back(host):
    layer = nn.Conv2d(3, 64, 3, padding=1)
    answers = []

    class Noting(Ssh):
        def _run(self, files):
            answers.append(super()._run(files))
            return answers[-1]

    backend = Noting(SshSettings(host="board", python=sys.executable))
    time_models({"one": layer}, SHAPE, backend, batch=2, rounds=1)
    (output,) = answers[0]["outputs"].values()
    assert output["shape"] == [2, 64, 16, 16]
    assert 900 < len(output["values"]) <= 1000
    wrong = {**output, "values": [value + 1 for value in output["values"]]}
    eager = eager_logits(layer, random_batch(SHAPE, 2))
    assert np.abs(ssh_module._completed(output, eager) - eager).max() < 1e-5
    assert np.abs(ssh_module._completed(wrong, eager) - eager).max() > 0.9
    with pytest.raises(AmcError, match=r"shape \[2, 64, 16, 8\], expected \[2, 64, 16, 16\]"):
        ssh_module._completed({**output, "shape": [2, 64, 16, 8]}, eager)


def test_why_a_host_cannot_be_measured(host):
    assert Ssh().available() == "host is not set: name one that ssh reaches"
    unknown = Ssh(SshSettings(host="nowhere"))
    assert unknown.available() == (
        "ssh nowhere: ssh: Could not resolve hostname nowhere: Name or service not known"
    )
    (result,) = compare(net(8), net(8), SHAPE, backends=[unknown])
    assert result.unavailable == unknown.available()
    bare = program(host / "bare_python", "#!/bin/sh\necho \"No module named 'onnxruntime'\" >&2\nexit 1\n")
    assert Ssh(SshSettings(host="board", python=str(bare))).available() == (
        "ssh board: No module named 'onnxruntime'"
    )
    chatty = program(host / "chatty_python", "#!/bin/sh\necho hello\n")
    with pytest.raises(AmcError, match=r"ssh board: the answer .* is not JSON .* got 'hello"):
        time_models({"one": net(8)}, SHAPE, Ssh(SshSettings(host="board", python=str(chatty))), rounds=1)


def test_a_program_that_hangs_is_given_up():
    with pytest.raises(AmcError, match="ssh: no answer within 0 s"):
        command(["sleep", "5"], "ssh", timeout=0.1)


@pytest.mark.parametrize("format_name", sorted(RUNNERS))
def test_the_file_for_a_phone_is_checked_by_the_runtime_of_its_format(format_name):
    twin = {"onnx": "onnxruntime"}.get(format_name, format_name)
    assert RUNNERS[format_name].twin is get_backend(twin)


def test_files_that_are_sent_parse_on_an_old_python():
    package = Path(ssh_module.__file__).parents[2]
    for name in ssh_module.SENT:
        tree = ast.parse((package / name).read_text(), feature_version=(3, 8))
        assert tree.body
