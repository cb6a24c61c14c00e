"""What a run folder remembers, in ``overrides.json``: the overrides of its commands, signed by their user."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amc.budget.budget import KINDS
from amc.errors import FileError
from amc.reading import read_json
from experiments.command.foreign import (
    is_choice_of_stages,
    is_override,
)
from experiments.command.memory.signature import is_signed, sign
from experiments.command.overrides import (
    absolute,
    is_config_option,
    key_of,
    parsed,
)

FILE = "overrides.json"
_MULTIRUN = "multirun.yaml"
"""File that Hydra writes into the folder of a multirun."""
_SHAPE = {
    "overrides": [str],
    **dict.fromkeys(("stages?", "unfinished?", "signature?"), (str, None)),
    "options?": [str],
}
_RESULTS = (
    *("*.safetensors", "*.jsonl", "strategy.json", "latency_model.json", "provenance.json", "agent.zip"),
    *("stages/*.json", "pareto/*", "exports/*"),
    *(f"{kind}_*/[!.]*" for kind in (*KINDS, "density")),
)
"""Files of a run folder that another job would overwrite, or take for its own."""


@dataclass(frozen=True)
class Memory:
    """The contents of ``overrides.json``.

    Attributes:
        overrides: all but ``run_dir``, ``stages`` and ``plan.stages``.
        stages: the override ``stages=`` of the first command; None if that was a plan.
        unfinished: that of the command that runs now or was interrupted.
        options: Hydra's options that say which configuration is read, with absolute folders.
        signed: whether this user wrote them.
    """

    overrides: list[str] = field(default_factory=list)
    stages: str | None = None
    unfinished: str | None = None
    options: list[str] = field(default_factory=list)
    signed: bool = True

    def content(self) -> dict[str, Any]:
        """Return what is signed; folders of earlier releases have no options."""
        content = {"overrides": self.overrides, "stages": self.stages, "unfinished": self.unfinished}
        return {**content, "options": self.options} if self.options else content

    def text(self) -> str:
        """Return the text of the file."""
        content = self.content()
        return json.dumps({**content, "signature": sign(content)}, indent=2, ensure_ascii=False) + "\n"


def memory_of(overrides: Sequence[str], options: Sequence[str], paths: Collection[str]) -> Memory:
    """Return the memory of a command that begins."""
    stages = next((o for o in overrides if key_of(o) == "stages" and not only_plans(o)), None)
    kept = [absolute(o, paths) for o in overrides if key_of(o) not in ("run_dir", "stages", "plan.stages")]
    return Memory(kept, stages, unfinished=stages, options=[*options])


def only_plans(override: str) -> bool:
    """Whether an override asks for stage ``plan`` alone."""
    return key_of(override) == "stages" and parsed(override).value() == ["plan"]


def known_memory(folder: Path) -> Memory:
    """Read the memory of a folder; a new folder has none.

    Raises:
        FileError: it is damaged, or missing although there are results or jobs of a multirun.
    """
    if not (folder / FILE).exists() and (folder / _MULTIRUN).exists():
        raise FileError(
            f"run_dir={folder} is the folder of a multirun; expected that of one of its jobs, or a new one"
        )
    if not (folder / FILE).exists() and (found := results_in(folder)):
        raise FileError(
            f"run_dir={folder} holds {found[0]} of an unknown job, as {FILE} is missing; expected the folder "
            "of a run, or a new one"
        )
    return read_memory(folder / FILE)


def results_in(folder: Path) -> list[str]:
    """Return the paths from a run folder of its results, which another job would take for its own."""
    return [str(path.relative_to(folder)) for pattern in _RESULTS for path in sorted(folder.glob(pattern))]


def read_memory(path: Path) -> Memory:
    """Read a memory.

    Raises:
        FileError: it is damaged, or holds what is no override.
    """
    if not path.exists():
        return Memory()
    remedy = "remove it and give the run's overrides again"
    data = read_json(path, _SHAPE, remedy)
    options = data.get("options", [])
    memory = Memory(data["overrides"], data.get("stages"), data.get("unfinished"), options)
    stages = [text for text in (memory.stages, memory.unfinished) if text is not None]
    odd = [o for o in memory.overrides if not is_override(o) or key_of(o) in ("run_dir", "stages")]
    odd += [text for text in stages if not is_choice_of_stages(text)]
    odd += [text for text in options if not is_config_option(text)]
    if odd:
        raise FileError(f"{path} is damaged: {odd[0][:80]!r} is no override that a run remembers; {remedy}")
    signed = is_signed(memory.content(), data.get("signature"))
    if memory.stages is not None and only_plans(memory.stages):  # of an earlier release
        memory = replace(memory, stages=None)
    return replace(memory, signed=signed)
