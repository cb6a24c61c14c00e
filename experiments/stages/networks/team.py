"""The processes that train one network together.

With ``processes=N`` the command starts N - 1 helpers, which end with the training. Under torchrun the
processes are there already: the first one runs the command, and the others help in every training
(``assist``). Helpers are sent the network; the data, a teacher's file and modules of the user have to lie on
their machine.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from amc import data
from amc.errors import GOES_ON, AmcError, brief, first_line
from amc.seeds import seed_all
from amc.training.loop import train
from amc.training.parallel.group import ALONE, Group, is_lost
from amc.training.settings import TrainSettings
from experiments.config.torchrun import torchrun_rank
from experiments.stages.networks.crew import WAIT, crew
from experiments.stages.networks.teaching import Source

READY = "ready"
PATIENCE = 5.0
"""Seconds that a helper has to say what has ended it, and to end."""
LOST = 75
"""Exit status of a helper that ends because another process has ended."""


@dataclass(frozen=True, eq=False)
class Job:
    """What a helper needs to take part in a training.

    Attributes:
        model: the network before the training.
        settings: of the training.
        seed: of the training.
        data: keyword arguments of ``amc.data.build``.
        source: where the teacher comes from.
        on_unseen: whether epochs are judged on the unseen images.
        device: kind of device, ``cpu`` or ``cuda``.
        threads: threads of each process.
    """

    model: nn.Module
    settings: TrainSettings
    seed: int
    data: Mapping[str, Any]
    source: Source
    on_unseen: bool
    device: str
    threads: int

    def run(self, group: Group) -> None:
        """Take part in the training as a helper."""
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False  # as in the first process
        seed_all(self.seed)  # likewise, for a data set that draws with the global generators
        splits = data.build(**self.data)
        train(
            self.model,
            splits,
            self.settings,
            seed=self.seed,
            device=own_device(self.device),
            teacher=self.source.opened(splits, self.settings, self.seed),
            hint_places=self.source.places,
            validation=splits.unseen if self.on_unseen else None,
            group=group,
        )


def own_device(kind: str) -> torch.device:
    """Return this process's device: on a machine with GPUs, one for each process."""
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)


@contextmanager
def team(processes: int, job: Callable[[], Job]) -> Iterator[Group]:
    """Train together with helpers during the block.

    Args:
        processes: number of processes of this machine; under torchrun its number counts.
        job: makes what helpers are sent; not called without helpers.

    Raises:
        AmcError: a helper has ended, or the network cannot be sent.
    """
    if torchrun_rank() is not None:
        given = _packed(job())
        try:
            with crew().training() as group:
                group.first(given)
                yield group
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise _lost(error) from error
        return
    if processes == 1:
        yield ALONE
        return
    own, threads = job(), torch.get_num_threads()
    given = _packed(own)
    helpers, address = _started(processes)
    try:
        torch.set_num_threads(own.threads)
        os.environ.update(address)
        group = Group(0, processes)
        dist.init_process_group(rank=0, world_size=processes, init_method="env://", timeout=WAIT)
        group.first(given)
        yield group
    except (AmcError, RuntimeError) as error:
        if not isinstance(error, AmcError) and not is_lost(error):
            raise
        told = error if isinstance(error, AmcError) else _lost(error)
        raise _with_reason(told, helpers) from error
    finally:
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()
        for name in address:
            os.environ.pop(name, None)
        for helper in helpers:
            _end(helper)


def assist() -> None:
    """Help in every training of the first process until it ends; for processes that torchrun has started."""
    for group in crew().trainings():
        pickle.loads(group.first(None)).run(group)


def _lost(error: RuntimeError) -> AmcError:
    return AmcError(f"a training process ended: {first_line(error)}")


def _packed(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:  # a user's network raises anything
        raise AmcError(
            f"the network cannot be sent to other processes ({first_line(error)}): expected one that can be "
            "pickled, or processes=1"
        ) from error


def _started(processes: int) -> tuple[list[subprocess.Popen[str]], dict[str, str]]:
    """Start the helpers and wait until each is about to join.

    Returns:
        The helpers, and the variables of the environment that name the place to meet.

    Raises:
        AmcError: one ended at once.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    helpers = []
    for rank in range(1, processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        helpers.append(
            subprocess.Popen(
                [sys.executable, "-m", __name__, *([] if "" not in sys.path else ["."])],
                env={**os.environ, **address, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        )
    for helper in helpers:
        assert helper.stdout is not None
        if helper.stdout.readline().strip() != READY:
            for each in helpers:
                _end(each)
            raise AmcError(f"a training process ended before it began (status {helper.returncode})")
    return helpers, address


def _with_reason(error: AmcError, helpers: list[subprocess.Popen[str]]) -> AmcError:
    """Return the error, or what ended a helper before: what it said, else its status."""
    statuses = {}
    for rank, helper in enumerate(helpers, 1):
        if (line := _said(helper)) is None:
            continue
        if line:
            return error if line == str(error) else AmcError(f"training process {rank}: {line}")
        with suppress(subprocess.TimeoutExpired):
            statuses[rank] = helper.wait(PATIENCE)
    for rank, status in statuses.items():
        if status not in (0, LOST):
            how = f"signal {-status}" if status < 0 else f"status {status}"
            return AmcError(
                f"training process {rank} of {len(helpers) + 1} has ended ({how}); {GOES_ON} from the "
                "last epoch"
            )
    return error


def _said(helper: subprocess.Popen[str]) -> str | None:
    """Return the line that a helper has said, "" if it ends without one, None if it goes on.

    Its line is there before the others notice its end, and its end may take long.
    """
    assert helper.stdout is not None
    ready, _, _ = select.select([helper.stdout], [], [], PATIENCE)
    return helper.stdout.readline().strip() if ready else None


def _end(helper: subprocess.Popen[str]) -> None:
    """Wait a moment for a helper to end by itself, then end it."""
    try:
        helper.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()
    if helper.stdout is not None:
        helper.stdout.close()


def main() -> None:
    """Be a helper that ``team`` has started.

    ``team`` reads READY and, if an error ends the helper, one line about it. All else that is printed goes to
    standard error: nobody would read it in time, and a full pipe would stop the training.
    """
    if len(sys.argv) > 1:
        sys.path.append("")
    with os.fdopen(os.dup(1), "w", errors="backslashreplace") as told:
        os.dup2(2, 1)
        print(READY, file=told, flush=True)
        try:
            _help()
        except Exception as error:  # of the user's modules, too
            if _is_of_others(error):
                sys.exit(LOST)
            print(error if isinstance(error, AmcError) else brief(error), file=told, flush=True)
            sys.exit(1)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _help() -> None:
    """Take part in one training of the processes that the environment names."""
    group = Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group(rank=group.rank, world_size=group.count, timeout=WAIT)
    pickle.loads(group.first(None)).run(group)


def _is_of_others(error: Exception) -> bool:
    """Whether an error says that another process has ended."""
    if isinstance(error, AmcError):
        return "training processes has ended" in str(error)
    return isinstance(error, RuntimeError) and is_lost(error)


if __name__ == "__main__":
    main()
