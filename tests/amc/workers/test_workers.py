import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.candidate.evaluator import channel_evaluator
from amc.candidate.memo import Memo
from amc.candidate.settings import CandidateSettings
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.workers.pool import RERUNS, WorkerPool, open_pool
from amc.workers.process import ProcessBackend
from amc.workers.protocol import WorkerLost, attempt
from amc.workers.settings import WorkerSettings
from amc.workers.shared_memory import pack, unpack
from tests.networks import SHAPE, Chain

ROOT = Path(__file__).parents[3]


class Picky(Chain):
    """Refuses to run when its first layer is thin."""

    def forward(self, x):
        if self.second.in_channels < 3:
            raise AmcError(f"{self.second.in_channels} channels are too few")
        return super().forward(x)


class Probe:
    """Answers questions about the process that it is in."""

    def __init__(self, size):
        self.data = torch.ones(size)

    def evaluate(self, question):
        (seconds,) = question
        before = private_bytes()
        total = float(self.data.sum())
        facts = total, private_bytes() - before, torch.get_num_threads(), os.getpid()
        time.sleep(seconds)
        return facts


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def make(model, data, path=None, **settings):
    graph = trace(model, torch.zeros(1, *SHAPE))
    memo = Memo(path) if path else None
    settings = CandidateSettings(batch_size=64, **settings)
    return channel_evaluator(model, graph, data.calibration, data.search_val, settings, memo=memo)


def some_widths(evaluator, count, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(int(rng.integers(3, w + 1)) for w in evaluator.builder.dense_widths) for _ in range(count)]


def evaluate_all(pool, widths, at_once=2):
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(pool.evaluate, widths))


def pids():
    return {process.pid for process in multiprocessing.active_children()}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def importable():
    """Lets workers import the networks of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def evaluator(trained, data, tmp_path_factory):
    evaluator = make(trained, data, tmp_path_factory.mktemp("memo") / "evaluations.jsonl")
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="module")
def pool(evaluator, lines, importable):
    pool = open_pool(evaluator, WorkerSettings("process", 2), lines.append)
    yield pool
    pool.close()


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "thread"}, "workers.kind is 'thread'; expected one of serial, process, ray"),
        ({"kind": "process", "count": 0}, "workers.count is 0; expected at least 1"),
        ({"kind": "process", "threads": 0}, "workers.threads is 0; expected at least 1"),
        ({"kind": "process", "address": "auto"}, "workers.address is 'auto', which only workers=ray uses"),
        *(
            (
                {"kind": "process", "timeout": seconds},
                f"workers.timeout is {seconds:g}; expected seconds above 0, at most 2000000 (23 days)",
            )
            for seconds in (0, 2.2e6, float("nan"), float("inf"))
        ),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(AmcError) as caught:
        WorkerSettings(**settings)
    assert str(caught.value) == message


def test_a_missing_ray_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(AmcError, match=r"pip install 'amc-search\[ray\]'"):
        WorkerSettings("ray")


def test_serial_evaluates_one_at_a_time_whatever_the_count():
    assert WorkerSettings("serial", 8).concurrency == 1
    assert WorkerSettings("process", 8).concurrency == 8


# --- payload


def test_tensors_of_all_sorts_survive_the_block():
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    value = {
        "whole": base,
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "slice": base[:, 1:, :, 0],
        "transposed": base.transpose(0, 3),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 5),
        "bool": torch.tensor([True, False, True]),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "double": torch.randn(5, dtype=torch.float64),
        "frozen": nn.Parameter(base.clone(), requires_grad=False),
        "learned": nn.Parameter(base.clone()),
        "array": np.arange(3),
        "text": "text",
    }
    payload = pack(value)
    found = unpack(payload)
    assert found.keys() == value.keys()
    start, end = payload.block.data_ptr(), payload.block.data_ptr() + len(payload.block)
    for name, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            assert np.array_equal(found[name], tensor)
            continue
        assert type(found[name]) is type(tensor)
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(found[name], tensor)
        assert found[name].requires_grad == tensor.requires_grad
        assert found[name].data_ptr() % tensor.element_size() == 0
        assert start <= found[name].data_ptr() < end or not tensor.numel()


def test_equal_memory_is_packed_once_and_a_slice_without_the_rest():
    large = torch.zeros(100_000)
    assert len(pack([large, large.detach(), large.view(100, 1000)]).block) < 4 * 100_000 + 4096
    assert len(pack(large[:10]).block) < 4096


def test_a_deep_copy_of_a_tensor_copies_no_other():
    small, _ = unpack(pack([torch.arange(10), torch.zeros(100_000)]))
    assert small.untyped_storage().nbytes() == 80
    assert torch.equal(copy.deepcopy(small), torch.arange(10))


def test_an_evaluator_gives_the_same_bits_after_packing(trained, data):
    for settings in ({}, {"sequential_images": 32}, {"order": "l1", "refit": False}):
        evaluator = make(trained, data, **settings)
        evaluator.prepare()
        twin = unpack(pack(evaluator.without_memory()))
        for widths in some_widths(evaluator, 3):
            assert twin.evaluate(widths) == evaluator.evaluate(widths)
        evaluator.close()


def test_objects_that_cannot_be_pickled_or_imported_are_refused_in_one_line():
    with pytest.raises(AmcError, match="cannot be sent to workers") as caught:
        pack({"activation": lambda x: x})
    assert "\n" not in str(caught.value)
    payload = pack(Probe)
    block = bytes(payload.block.numpy()).replace(b"Probe", b"Prone")
    payload.block.copy_(torch.frombuffer(bytearray(block), dtype=torch.uint8))
    with pytest.raises(AmcError, match=r"a worker cannot rebuild the network: .*Prone") as caught:
        unpack(payload)
    assert "\n" not in str(caught.value)


# --- the pool, with workers that are lost on command


class FakeWorker:
    """Evaluates in this process; `fate` is asked before each evaluation and may raise."""

    def __init__(self, evaluator, fate):
        self.evaluator, self.fate, self.closed = evaluator, fate, False

    def ready(self):
        self.fate(None)

    def evaluate(self, widths):
        assert not self.closed
        self.fate(widths)
        return attempt(self.evaluator.evaluate, widths)

    def close(self):
        self.closed = True


class FakeBackend:
    def __init__(self, evaluator, fate=lambda widths: None):
        self.evaluator, self.fate, self.closed, self.workers = evaluator, fate, False, []

    def start(self):
        self.workers.append(FakeWorker(self.evaluator, self.fate))
        return self.workers[-1]

    def close(self):
        assert all(worker.closed for worker in self.workers)
        self.closed = True


class Losing:
    """Loses the worker at the first `times` evaluations of `widths`."""

    def __init__(self, widths, times):
        self.widths, self.times = widths, times

    def __call__(self, widths):
        if widths == self.widths and self.times:
            self.times -= 1
            raise WorkerLost("exit code -9")


def test_an_evaluation_whose_workers_are_lost_is_run_again(trained, data):
    evaluator, twin, log = make(trained, data), make(trained, data), []
    bad, good = some_widths(evaluator, 2)
    backend = FakeBackend(twin, Losing(bad, RERUNS))
    pool = WorkerPool(evaluator, backend, 2, log.append)
    assert pool.evaluate(bad) == twin.evaluate(bad)
    assert log == ["a worker was lost (exit code -9); its evaluation is run again"] * RERUNS
    assert len(backend.workers) == 2 + RERUNS  # always run again on a new one
    assert pool.evaluate(good) == twin.evaluate(good)
    pool.close()
    assert backend.closed


def test_an_evaluation_that_always_kills_its_worker_is_given_up(trained, data):
    evaluator, log = make(trained, data), []
    bad, good = some_widths(evaluator, 2)
    pool = WorkerPool(evaluator, FakeBackend(make(trained, data), Losing(bad, 100)), 2, log.append)
    with pytest.raises(AmcError, match=r"4 workers were lost .* \(exit code -9\)") as caught:
        pool.evaluate(bad)
    assert "\n" not in str(caught.value)
    assert log[-1].endswith("its evaluation is given up")
    assert len(log) == 1 + RERUNS
    assert pool.evaluate(good).widths == good
    pool.close()


def test_workers_that_die_at_their_start(trained, data):
    evaluator = make(trained, data)
    backend = FakeBackend(evaluator, Losing(None, 1))
    with pytest.raises(AmcError, match=r"a worker died at its start \(exit code -9\)"):
        WorkerPool(evaluator, backend, 2, print)
    assert backend.closed
    assert len(backend.workers) == 2


def test_an_interrupted_worker_is_not_used_again(trained, data):
    evaluator = make(trained, data)
    interrupts = [KeyboardInterrupt()]

    def fate(widths):
        if widths and interrupts:
            raise interrupts.pop()

    backend = FakeBackend(evaluator, fate)
    pool = WorkerPool(evaluator, backend, 1, print)
    (widths,) = some_widths(evaluator, 1)
    with pytest.raises(KeyboardInterrupt):
        pool.evaluate(widths)
    assert backend.workers[0].closed
    assert pool.evaluate(widths).widths == widths
    assert [worker.closed for worker in backend.workers] == [True, False]
    pool.close()


def test_a_closed_pool_starts_no_worker(trained, data):
    evaluator = make(trained, data)
    (widths,) = some_widths(evaluator, 1)
    pool = WorkerPool(evaluator, FakeBackend(evaluator, Losing(widths, 1)), 1, print)
    pool.close()
    with pytest.raises(AmcError, match="closed"):
        pool.evaluate(widths)


def test_the_same_widths_are_evaluated_once_at_a_time(trained, data):
    evaluator, calls, entered, go = make(trained, data), [], threading.Event(), threading.Event()

    def fate(widths):
        if widths:
            calls.append(widths)
            entered.set()
            assert go.wait(30)

    pool = WorkerPool(evaluator, FakeBackend(make(trained, data), fate), 3, print)
    (widths,) = some_widths(evaluator, 1)
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(pool.evaluate, list(widths)) for _ in range(3)]
        assert entered.wait(30)
        go.set()
        found = [future.result() for future in futures]
    assert calls == [widths]
    assert found[0] is found[1] is found[2]
    pool.close()


def test_an_error_of_ours_stays_as_it_is(data):
    torch.manual_seed(0)
    evaluator = make(Picky().eval(), data, order="l1", refit=False)
    pool = WorkerPool(evaluator, FakeBackend(evaluator), 1, print)
    with pytest.raises(AmcError) as caught:
        pool.evaluate((2, 12))
    assert str(caught.value) == "2 channels are too few"
    assert pool.evaluate((3, 12)).widths == (3, 12)
    pool.close()


class NeedsTwoError(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def test_an_exception_that_cannot_be_pickled_comes_as_text():
    def fail(argument):
        raise NeedsTwoError(f"{argument} is bad", 2)

    found = attempt(fail, "this")
    assert type(found) is RuntimeError
    assert str(found) == "NeedsTwoError: this is bad"


# --- processes


def test_processes_give_the_bits_of_one_process_and_the_memo_is_the_parents(pool, evaluator, trained, data):
    serial = make(trained, data)
    widths = some_widths(evaluator, 12)
    found = evaluate_all(pool, widths)
    assert found == [serial.evaluate(each) for each in widths]
    assert all(evaluation.seconds > 0 for evaluation in found)
    assert all(evaluator.known(each) is evaluation for each, evaluation in zip(widths, found, strict=True))
    assert pool.evaluate(widths[0]) is found[0]
    assert pool.macs(widths[0]) == found[0].macs


@pytest.mark.slow  # starts a third process, which imports torch; the fake workers above lose workers, too
def test_a_killed_process_is_replaced_and_its_evaluation_run_again(pool, evaluator, lines, trained, data):
    before = pids()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)  # so that both are in the middle of an evaluation
    widths = some_widths(evaluator, 2, seed=1)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(pool.evaluate, each) for each in widths]
        wait_until(lambda: len(pool._pending) == 2 and pool._idle.empty())
        victim, survivor = sorted(before)
        os.kill(victim, signal.SIGKILL)
        os.kill(survivor, signal.SIGCONT)
        found = [future.result(60) for future in futures]
    assert found == [make(trained, data).evaluate(each) for each in widths]
    assert lines == [f"a worker was lost (process {victim}, exit code -9); its evaluation is run again"]
    assert gone(victim)
    evaluate_all(pool, some_widths(evaluator, 4, seed=2))
    assert survivor in pids()


def test_an_exception_of_an_evaluation_comes_back_as_it_is(pool, evaluator, lines):
    told = len(lines)
    with pytest.raises(ValueError, match="zip") as caught:
        pool.evaluate((3, 3))
    assert type(caught.value) is ValueError
    assert "in a worker" in caught.value.__notes__[0]
    (widths,) = some_widths(evaluator, 1, seed=3)
    assert pool.evaluate(widths).widths == widths
    assert len(lines) == told


@pytest.mark.slow
def test_no_process_is_left_after_close(pool):
    before = pids()
    assert len(before) == 2
    pool.close()
    assert pids() == set()
    assert all(gone(pid) for pid in before)


@pytest.mark.slow  # starts a process of its own, which imports torch
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_reads_the_tensors_where_they_are(importable):
    size = 16 * 2**20
    backend = ProcessBackend(pack(Probe(size)), threads=1)
    worker = backend.start()
    try:
        worker.ready()
        total, private, threads, pid = worker.evaluate((0,))
    finally:
        worker.close()
    assert total == size
    assert private < 4 * size / 16
    assert threads == 1
    assert gone(pid)


@pytest.mark.slow  # starts a process of its own, which imports torch
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="cannot stop a process")
def test_several_threads_may_end_a_process_that_one_of_them_waits_for(importable):
    backend = ProcessBackend(pack(Probe(8)), threads=1)
    worker = backend.start()
    worker.ready()
    os.kill(worker.evaluate((0,))[-1], signal.SIGSTOP)

    def waited():
        try:
            worker.evaluate((0,))
        finally:
            worker.close()  # as a pool does with a worker that gave no answer

    with ThreadPoolExecutor(4) as threads:
        waiting = threads.submit(waited)
        time.sleep(0.1)
        for closing in [threads.submit(worker.close) for _ in range(3)]:
            closing.result()
        with pytest.raises(WorkerLost, match="exit code -9"):
            waiting.result()
    assert worker._connection.closed
    backend.close()


@pytest.mark.slow  # starts processes of its own, which import torch
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="cannot stop a process")
def test_a_process_that_hangs_counts_as_lost_and_ends(importable):
    backend = ProcessBackend(pack(Probe(8)), threads=1)
    worker = backend.start()
    try:
        worker.ready()
        pid = worker.evaluate((0,))[-1]
        os.kill(pid, signal.SIGSTOP)
        worker._timeout = 0.5
        with pytest.raises(WorkerLost, match=rf"process {pid}, no answer within 0\.5 s"):
            worker.evaluate((0,))
    finally:
        worker.close()
        backend.close()
    assert gone(pid)


PARENT = """
import sys, threading
from amc.workers.shared_memory import pack
from amc.workers.process import ProcessBackend
from tests.amc.workers.test_workers import Probe

if __name__ == "__main__":
    workers = [ProcessBackend(pack(Probe(8)), 1).start() for _ in range(2)]
    for worker in workers:
        worker.ready()
    print(*[worker.evaluate((0,))[-1] for worker in workers], flush=True)
    workers[0].evaluate((600,))
"""


@pytest.mark.slow
def test_processes_die_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert not any(gone(pid) for pid in children)
        parent.kill()
    wait_until(lambda: all(gone(pid) for pid in children), 20)


# --- Ray


@pytest.mark.slow
def test_ray_gives_the_bits_of_one_process_and_replaces_actors(trained, data, importable):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'amc-search[ray]'")
    handler = signal.getsignal(signal.SIGTERM)
    evaluator, serial, log = make(trained, data), make(trained, data), []
    widths = some_widths(evaluator, 12)
    pool = open_pool(evaluator, WorkerSettings("ray", 2), log.append)
    try:
        assert evaluate_all(pool, widths[:11]) == [serial.evaluate(each) for each in widths[:11]]
        with pytest.raises(ValueError, match="zip") as caught:
            pool.evaluate((3, 3))
        assert type(caught.value) is ValueError
        assert not log
        actors = [worker._actor for worker in pool._workers]
        for pid in ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors]):
            os.kill(pid, signal.SIGKILL)
        assert pool.evaluate(widths[11]) == serial.evaluate(widths[11])
        assert log
        assert "a worker was lost" in log[0]
    finally:
        pool.close()
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler
