"""Every runtime that is installed, on a small network."""

from pathlib import Path

import pytest
import torch
from torch import nn

from amc.export.reference import eager_logits, largest_difference, random_batch
from amc.latency import BACKENDS, get_backend
from amc.latency.measure import torch_threads_restored
from amc.latency.protocol import FileBackend

SHAPE = (3, 32, 32)
AVAILABLE = [name for name in sorted(BACKENDS) if get_backend(name).available() is None]


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
    for _ in range(40):
        run()
    growth = [now - before.get(task, 0) for task, now in spent().items()]
    return sum(nanoseconds >= sum(growth) / 5 for nanoseconds in growth)


@pytest.mark.parametrize("name", AVAILABLE)
def test_logits_are_those_of_eager_and_threads_are_respected(name, network, capfd):
    eager = eager_logits(network, random_batch(SHAPE, 8))
    for threads in (1, 2):
        with torch_threads_restored():
            prepared = get_backend(name).prepare(network, SHAPE, 8, threads)
            difference, scale = largest_difference(prepared.run(), eager)
            assert difference <= 1e-4 * scale
            assert busy_threads(prepared.run) == threads
    assert network.training
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    if isinstance(get_backend(name), FileBackend):
        assert prepared.file_bytes > 4 * sum(p.numel() for p in network[4].parameters())
    assert get_backend(name).version()[0].isdigit()
