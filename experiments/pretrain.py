"""Trains an actor on finished searches: ``python -m experiments.pretrain RUN RUN ... --out FILE``.

Each RUN is a run folder whose search had error curves and a budget. ``agent.pretrained=FILE`` starts a search
of another network from what the actor expects of its error curves (``agents.transfer``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from agents.transfer import Experience, actor_bytes, load_experience, train_actor
from amc.errors import AmcError
from amc.files import atomic_write_bytes
from experiments.run.episodes import FEWEST_LESSONS
from experiments.run.folder import RunFolder

_PARTS = ("*", "steps/*", "*/steps/*")
"""Where a run folder has those of its budgets, and those of the steps of a schedule."""


def pretrain(folders: Sequence[Path], out: Path, *, seed: int = 0) -> list[str]:
    """Train an actor, write it, and return the names of its networks.

    Raises:
        ValueError: a folder has no experience.
        AmcError: the file cannot be written.
    """
    found = [_experience(folder) for folder in folders]
    actor = train_actor([experience for experience, _ in found], seed=seed)
    names = [name for _, name in found]
    atomic_write_bytes(out, actor_bytes(actor, names))
    return names


def _experience(folder: Path) -> tuple[Experience, str]:
    """Return what the search of a run folder has learned, and the name of its network.

    Raises:
        ValueError: it has learned nothing, or the file is damaged. Folders in it that have learned are named.
    """
    file = RunFolder(folder).experience
    if file.exists():
        return load_experience(file)
    if parts := [path.parent for part in _PARTS for path in sorted(folder.glob(f"{part}/{file.name}"))]:
        raise ValueError(
            f"{folder} has no {file.name} itself; name the folders in it: {' '.join(map(str, parts))}"
        )
    raise ValueError(
        f"{folder} has no {file.name}: expected the folder of a search that met at least {FEWEST_LESSONS} "
        "different networks, with error curves and a reward that enforces the budget; run stages=[search] "
        "agent=ddpg compressor.order=obs on it"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pretrain", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of finished searches")
    parser.add_argument("--out", type=Path, required=True, help="the file of the actor (.safetensors)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    options = parser.parse_args()
    try:
        names = pretrain(options.runs, options.out, seed=options.seed)
    except (AmcError, ValueError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"pretrain: {options.out} has learned from {', '.join(names)}; use agent.pretrained={options.out}")


if __name__ == "__main__":
    main()
