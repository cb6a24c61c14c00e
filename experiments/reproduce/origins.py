"""Lines that say where figures come from: commands, commits and devices; and which recipes did not run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import conf
from experiments.config.stages import STAGES
from experiments.reproduce.commands import setting_of, short_commit, shown_command, words_of

Provenance = Mapping[str, Any]


def origin(agents: Mapping[str, Sequence[Provenance]]) -> list[str]:
    """Return lines for each agent with its commands and commits, and one on the devices of all."""
    devices = [provenance["device"] for own in agents.values() for provenance in own]
    threads = sorted({int(device["threads"]) for device in devices})
    names = sorted({str(device.get("cpu") or device["kind"]) for device in devices})
    counted = f"{' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    lines = [line for name, own in agents.items() for line in command_lines(name, own)]
    return [*lines, f"- measured on {', '.join(names)}, {counted}"]


def command_lines(agent: str, provenances: Sequence[Provenance]) -> list[str]:
    """Return a line for each command of one agent, with its seeds and commits.

    Commands that differ in nothing but the seed and the order of the words are one.
    """
    groups: dict[tuple[str, ...], list[Provenance]] = defaultdict(list)
    for facts in provenances:
        words = words_of(shown_command(str(facts["command"])))
        groups[tuple(sorted(word for word in words if not word.startswith("seed=")))].append(facts)
    return [_command_line(agent, own) for own in groups.values()]


def _command_line(agent: str, provenances: Sequence[Provenance]) -> str:
    command = shown_command(str(provenances[0]["command"]))
    seeds = list(dict.fromkeys(_seed(facts) for facts in provenances))
    counted = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return f"- {agent}, {counted}: `{command}`, commit {_commits(provenances)}"


def _seed(provenance: Provenance) -> str:
    """Return the seed of a run; one without a record of it has that of its command, or the default."""
    return str(provenance.get("seed", setting_of(str(provenance["command"]), "seed") or 0))


def _commits(provenances: Sequence[Provenance]) -> str:
    """Return the commits that runs were made at, with the stages of each where stages differ."""
    made: dict[str, set[str]] = defaultdict(set)
    for facts in provenances:
        for stage, commit in facts["stage_commits"].items():
            made[short_commit(commit)].add(stage)
    if len({frozenset(stages) for stages in made.values()}) == 1:
        return ", ".join(sorted(made))
    place = {name: number for number, name in enumerate(STAGES)}
    return "; ".join(
        f"{commit} ({', '.join(sorted(stages, key=place.__getitem__))})"
        for commit, stages in sorted(made.items(), key=lambda item: sorted(place[name] for name in item[1]))
    )


def made_with(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the commits of measured rows and the versions of their packages, all that occur.

    Args:
        rows: each with its ``commit``, and ``versions`` (package -> version, None where it was not
            installed), which older rows do not have.
    """
    commits = ", ".join(dict.fromkeys(short_commit(row["commit"]) for row in rows))
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for package, number in row.get("versions", {}).items():
            found[package][number or "not installed"] = None
    versions = [f"{package} {' and '.join(each)}" for package, each in found.items()]
    older = sum("versions" not in row for row in rows)
    untold = [f"versions not recorded in {older} of {len(rows)} rows"] if older else []
    return ", ".join([f"commit {commits}", *versions, *untold])


def not_run(ran: Collection[str | None]) -> str:
    """Return a section on the recipes (``conf/experiment``) that are not among those that ran.

    Runs of which none followed a recipe are a study of one's own, without this section.
    """
    if not any(ran):
        return ""
    recipes = sorted((Path(conf.__file__).parent / "experiment").glob("*.yaml"))
    lines = [_recipe(path) for path in recipes if path.stem not in ran]
    head = [
        "## Recipes without a run",
        "",
        "Complete, and run at toy size by the tests. A table above of the same network is of other images.",
        "",
    ]
    return "\n".join([*head, *lines, ""]) if lines else ""


def _recipe(path: Path) -> str:
    """Return a recipe's line: the command and the text of the comment at the top of its file."""
    comment = [
        line[1:].strip()
        for line in path.read_text().splitlines()
        if line.startswith("# ") and "@package" not in line
    ]
    command = next(line for line in comment if line.startswith("amc "))
    about = " ".join(line for line in comment if not line.startswith("amc "))
    return f"- **not run here**: `{command}`. {about}"
