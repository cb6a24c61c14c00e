"""Every runtime that is installed, on a small network."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.latency import BACKENDS, compare, get_backend, time_models
from amc.latency.portable import machine
from amc.latency.portable.machine import clock_notes, cpu_model
from amc.latency.timing.measure import torch_threads_restored
from amc.latency.timing.peak_memory import peak_memory
from amc.runtimes import litert
from amc.runtimes.litert import LITERT
from amc.runtimes.protocol import FileBackend, FileRuntime, Prepared
from amc.runtimes.reference import eager_logits, largest_difference, random_batch
from tests.params import slow

SHAPE = (3, 32, 32)
AVAILABLE = [name for name in sorted(BACKENDS) if get_backend(name).available() is None]
SLOW = {"torch_compile", "executorch", "litert"}
"""The last two import their converters for 5 to 10 seconds."""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    model[1].running_mean.normal_()
    return model


def busy_threads(run) -> int:
    """How many threads of this process do at least a fifth of the work of ``run``."""

    def spent() -> dict[str, int]:
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}

    tasks = Path("/proc/self/task")
    run()
    before = spent()
    for _ in range(20):
        run()
    growth = [now - before.get(task, 0) for task, now in spent().items()]
    return sum(nanoseconds >= sum(growth) / 5 for nanoseconds in growth)


@pytest.mark.parametrize(
    "name",
    [slow(name) if name in SLOW else name for name in AVAILABLE],
)
def test_logits_are_those_of_eager_and_threads_are_respected(name, network, capfd):
    backend = get_backend(name)
    images = random_batch(SHAPE, 8)
    eager = eager_logits(network, images)
    content = backend.convert(network, SHAPE, 8) if isinstance(backend, FileBackend) else None
    for threads in (1, 2):
        with torch_threads_restored():
            if content is None:
                run = backend.prepare(network, SHAPE, 8, threads).run
            else:
                run = backend.load(content, images.numpy(), threads)
            difference, scale = largest_difference(run(), eager)
            assert difference <= 1e-4 * scale
            seen = next((True for _ in range(20) if busy_threads(run) == threads), False)
            assert seen or os.getloadavg()[0] > (os.cpu_count() or 1)  # a machine at its limit hides one
    assert network.training
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    if content is not None:
        assert len(content) > 4 * sum(p.numel() for p in network.parameters())
    assert backend.version()[0].isdigit()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in sorted(BACKENDS) if "cuda" in name or "tensorrt" in name])
def test_a_gpu_computes_the_same(name, network):
    backend = get_backend(name)
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    (timing,) = time_models({"one": network}, SHAPE, backend, batch=2, rounds=3).values()
    assert 0 < timing.median_ms < 1000


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - set(AVAILABLE)))
def test_an_unavailable_runtime_gives_its_reason_in_one_line(name):
    reason = get_backend(name).available()
    assert reason
    assert "\n" not in reason


def test_names_of_backends_are_their_keys():
    assert [get_backend(name).name for name in BACKENDS] == list(BACKENDS)


@pytest.mark.parametrize("fixed", [False, True])
def test_litert_converts_images_once_where_they_are_timed(fixed, network, monkeypatch):
    """Else the time of an int8 network would hold numpy's rounding; other callers change their images."""
    seen = []

    class Interpreter:
        def __init__(self, **_):
            pass

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"index": 0, "dtype": np.int8, "quantization": (0.5, 0)}]

        def get_output_details(self):
            return [{"index": 1}]

        def set_tensor(self, _, images):
            seen.append(images)

        def invoke(self):
            pass

        def get_tensor(self, _):
            return seen[-1].max()

    monkeypatch.setattr(litert, "_interpreter_class", lambda: Interpreter)
    images = np.full((1, *SHAPE), 3, np.float32)
    if fixed:
        run = replace(LITERT, convert=lambda *_: b"").prepare(network, SHAPE, 1, 1).run
    else:
        run = LITERT.load(b"", images, 1)
    run()
    images[:] = 5
    run()
    assert seen[0].dtype == np.int8
    assert (seen[0] is seen[1]) == fixed
    assert fixed or (seen[0].max(), seen[1].max()) == (6, 10)


def test_a_file_runtime_prepares_the_file_that_it_converts(network):
    def convert(model, input_shape, batch):
        assert model is network
        return bytes((*input_shape, batch))

    def load(content, images, threads):
        return lambda: (content, images.shape, threads)

    runtime = FileRuntime("fake", ("no_such_package",), lambda: "1", lambda: None, convert, load)
    assert isinstance(runtime, FileBackend)
    assert runtime.available() == "not installed: no_such_package"
    assert replace(runtime, packages=(), lacking=lambda: "no device").available() == "no device"
    prepared = runtime.prepare(network, SHAPE, 2, 3)
    assert prepared.run() == (prepared.content, (2, *SHAPE), 3) == (bytes((*SHAPE, 2)), (2, *SHAPE), 3)
    assert (prepared.clock, prepared.device) == (None, None)
    assert replace(runtime, device=lambda: "a GPU").prepare(network, SHAPE, 2, 3).device == "a GPU"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else True)
    assert get_backend("openvino").available() == "not installed: openvino"


def test_a_broken_package_is_a_reason_and_no_operator_is_blamed(network):
    def broken(*_):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    runtime = replace(get_backend("onnxruntime"), packages=(), lacking=broken, load=broken)
    assert runtime.available() == (
        "installed, but it fails: ImportError: libcudart.so.12: cannot open shared object file"
    )
    (result,) = compare(network, network, SHAPE, backends=[runtime])
    assert result.unavailable == runtime.available()
    with pytest.raises(AmcError, match=r"does not run: libcudart.so.12: cannot open shared object file$"):
        time_models({"one": network}, SHAPE, replace(runtime, convert=lambda *_: b""))


def test_inductor_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert get_backend("torch_compile").available() == "no C++ compiler found: no-such-compiler"


def test_a_network_that_was_converted_wrongly_is_not_timed(network):
    class Wrong:
        name, precision = "wrong", "float32"

        def prepare(self, model, input_shape, batch, threads):
            return Prepared(lambda: torch.zeros(batch, 10))

    with pytest.raises(AmcError, match=r"wrong \(float32\) differs from eager by 1.00e\+00 of the largest"):
        time_models({"dense": network}, SHAPE, Wrong())


def test_openvino_does_not_report_itself():
    code = (
        "import sys; from amc.latency import get_backend; get_backend('openvino').version();"
        "print([name for name in sys.modules if 'telemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openvino_telemetry" not in done.stdout


def test_the_peak_memory_of_a_file_that_does_not_run_is_not_known():
    assert peak_memory(get_backend("onnxruntime"), b"no network", SHAPE, 1, 1) is None


def test_the_process_that_measures_memory_runs_no_code_of_the_current_directory(tmp_path, monkeypatch):
    backend = get_backend("onnxruntime")
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 8)).eval()
    content = backend.convert(network, SHAPE, 1)
    (tmp_path / "numpy.py").write_text("open('ran', 'w')")
    monkeypatch.setattr(sys, "path", [str(Path(entry or ".").resolve()) for entry in sys.path])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    assert peak_memory(backend, content, SHAPE, 1, 1) > 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_sizes_and_memory_grow_with_the_network():
    def wide(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.Linear(width, 8))

    models = wide(2048), wide(8)
    (result,) = compare(*models, (3, 16, 16), backends=["onnxruntime"], rounds=1, memory=True)
    assert result.file_bytes["dense"] - result.file_bytes["pruned"] == pytest.approx(6.4e6, rel=0.1)
    peaks = result.peak_memory_bytes
    assert 5e6 < peaks["dense"] - peaks["pruned"] < 60e6
    assert peaks["pruned"] > result.file_bytes["pruned"]
    assert result.notes[0].startswith("CPU governor: ")
    (result,) = compare(*models, (3, 16, 16), backends=["torch"], rounds=1, memory=True)
    assert result.file_bytes == result.peak_memory_bytes == {}


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        ("processor : 0\nmodel name : Intel(R) Core(TM) i7", None, "Intel(R) Core(TM) i7"),
        (
            "CPU implementer : 0x41\nCPU part : 0xd0b\n\nCPU implementer : 0x41\nCPU part : 0xd0b",
            "Raspberry Pi 5 Model B Rev 1.0\0",
            "Raspberry Pi 5 Model B Rev 1.0, CPU implementer 0x41, CPU part 0xd0b",
        ),
        ("model name : ARMv7 Processor rev 3 (v7l)\nCPU part : 0xd08", None, "CPU part 0xd08"),
        ("model name : ARMv7 Processor rev 3 (v7l)", None, "ARMv7 Processor rev 3 (v7l)"),
    ],
)
def test_a_processor_without_a_name_is_told_by_its_board_and_its_cores(monkeypatch, cpuinfo, board, name):
    files = {"/proc/cpuinfo": cpuinfo, "/proc/device-tree/model": board}
    monkeypatch.setattr(machine, "_read", files.get)
    assert cpu_model() == name


def test_a_mac_tells_its_processor(monkeypatch, tmp_path):
    (tmp_path / "sysctl").write_text('#!/bin/sh\ntest "$2" = machdep.cpu.brand_string && echo Apple M3\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setattr(machine, "_read", lambda path: None)
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_model() == "Apple M3"
    (tmp_path / "sysctl").unlink()
    assert cpu_model() == (machine.platform.processor() or machine.platform.machine())


def test_clock_notes_read_the_files_of_linux(monkeypatch):
    files = {
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2500000",
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    }
    monkeypatch.setattr("amc.latency.portable.machine._read", files.get)
    assert clock_notes() == [
        "CPU governor: performance",
        "CPU 0 at 2.50 GHz after the measurement",
        "turbo off",
    ]
