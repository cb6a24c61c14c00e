"""What the recorded command of a run tells: its words, its agent, its recipe, its commit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import conf
from experiments.run.provenance import FORMER, recorded_stages

_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*"|['"])+""")
"""Text without spaces outside of quotes; a quote that is not closed is a letter like others."""
_LIST, _IN_LIST = ("[", "{"), re.compile(r"[^\[\]{},:]*/[^\[\]{},]*")
COMMANDS = ("command", *FORMER.values())
"""The commands of a provenance: the last one, and earlier ones that trained."""
_HASH = 7
"""Digits of a commit that are shown."""


def words_of(command: str) -> list[str]:
    """Return the words of a command, with the quotes that they have but for those around a whole word.

    A path with spaces may have lost its quotes when the shell read it: words that are no settings belong to
    the setting before them, if that makes a path.
    """
    words: list[str] = []
    for word in map(_unquoted, _WORD.findall(command)):
        option = "=" in word or word.startswith(("-", "~"))
        if words and "=" in words[-1] and not option and "/" in words[-1] + word:
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def _unquoted(word: str) -> str:
    """Return what a shell makes of a word that is quoted as a whole; others stay as they are."""
    if word[0] not in "'\"" or len(word) < 2 or word[-1] != word[0]:
        return word
    try:
        return "".join(shlex.split(word))
    except ValueError:  # a quote that is not closed
        return word


def command_of(words: Iterable[str]) -> str:
    """Return the command of words, from which `words_of` gives them back."""
    return " ".join(word if _WORD.fullmatch(word) else shlex.quote(word) for word in words)


def setting_of(command: str, key: str) -> str | None:
    """Return the value that a command gives to a key, the last one if it gives several."""
    found = [word.partition("=")[2] for word in words_of(command) if word.startswith(f"{key}=")]
    return found[-1] if found else None


def shown_command(command: str) -> str:
    """Return a command with ``DIR`` and ``FILE`` in place of the paths of one machine."""
    words = []
    for word in words_of(command):
        key, equals, value = word.partition("=")
        if key == "run_dir":
            continue
        if equals and "/" in value and not value.startswith("experiments/"):
            words.append(f"{key}={_shown_value(key, value)}")
        else:
            words.append(word)
    return command_of(words)


def _shown_value(key: str, value: str) -> str:
    if value.startswith(_LIST):
        return _IN_LIST.sub(lambda found: _shown_path(key, found.group()), value)
    return _shown_path(key, value)


def _shown_path(key: str, path: str) -> str:
    file = Path(path.strip(chr(34) + chr(39)))
    if key.endswith(("root", "dir", "teacher_cache")):
        return "DIR"
    # which of several files decides a training
    return file.name if key.endswith((".teacher", "schedule.rewind")) else f"FILE{file.suffix}"


def with_all_stages(provenance: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a provenance with all stages that were run and their commits.

    A later call may have added stages, which the recorded command does not name. Stage ``schedule`` leaves a
    record of ``prune``, which no command may name beside it.
    """
    found = recorded_stages(folder)
    stages = [name for name in found if name != "prune" or "schedule" not in found]
    commands = {name: provenance[name] for name in COMMANDS if name in provenance}
    return {
        "stage_commits": dict.fromkeys(stages, provenance["commit"]),
        **provenance,
        **{name: _with_stages(str(text), stages) for name, text in commands.items()},
    }


def _with_stages(command: str, stages: Iterable[str]) -> str:
    """Return a command with other stages."""
    words = [word for word in words_of(command) if not word.startswith("stages=")]
    return command_of([*words, f"stages=[{','.join(stages)}]"])


def short_commit(commit: object) -> str:
    """Return the first digits of a commit, and ``+dirty`` if it had changes that no commit holds."""
    number, dirty, changes = str(commit).partition("+")
    return number[:_HASH] + dirty + changes


def agent_of(recorded: str, command: str, published: object = None) -> str:
    """Return the agent as the command names it, where that is a preset of the recorded one.

    ``agent=ddpg_paper`` is recorded as ``ddpg``. An agent of the user's own has its dotted path, also where
    it was given as ``mine:search``.

    Args:
        recorded: of the strategy.
        command: of the run.
        published: the preset that a published strategy names: a command that carries it out has none.
    """
    word = published if isinstance(published, str) else setting_of(command, "agent")
    return word if word is not None and _name_of_preset(word) == recorded else recorded.replace(":", ".")


@cache
def _name_of_preset(preset: str) -> str | None:
    """Return ``agent.name`` of a file in ``conf/agent``; None if there is no such file."""
    path = Path(conf.__file__).parent / "agent" / f"{preset}.yaml"
    if re.fullmatch(r"\w+", preset) is None or not path.exists():
        return None
    settings = yaml.safe_load(path.read_text())
    base = next(name for name in settings["defaults"] if name.startswith("base_"))
    return str(settings.get("name", base.removeprefix("base_")))


_TRAINING = ("finetune=", "finetune.", "choose.", "schedule.")
_OF_THE_DATA = (
    "experiment=", "data.batch_size=", "data.calibration=", "data.image_size=", "data.mirror=",
    "data.search_val=", "data.unseen=",
)  # fmt: skip
"""Settings that decide a training too: its recipe and its images."""
_MANNER = ("teacher_cache", "compile", "processes", "sharded")
"""Settings of a training that change how it computes, and not what."""


def recipe_of(command: str) -> str:
    """Return the words of a command that decide how networks are trained after pruning."""
    words = words_of(shown_command(command))
    manner = tuple(f"finetune.{name}=" for name in _MANNER)
    kept = {word.partition("=")[0]: word for word in words}
    training = [word for word in kept.values() if word.startswith(_TRAINING) and not word.startswith(manner)]
    images = [word for word in kept.values() if word.startswith(_OF_THE_DATA)]
    stages = [name for word in words if word.startswith("stages=[") for name in word[8:-1].split(",")]
    steps = [f"stage {name}" for name in ("schedule", "choose") if name in stages]
    parts = (command_of(sorted(training)), *steps, command_of(sorted(images, key=_experiment_first)))
    return " ".join(part for part in parts if part)


def _experiment_first(word: str) -> tuple[bool, str]:
    return not word.startswith("experiment="), word


def shown_recipe(recipe: str) -> str:
    """Return a recipe as text: the settings of the training, then those of the recipe and of its images."""
    words = words_of(recipe)
    images = [word for word in words if word.startswith(_OF_THE_DATA)]
    training = [word for word in words if word not in images]
    own = f"`{command_of(training)}`" if training else "the experiment's own settings"
    return own + (f", with `{command_of(images)}`" if images else "")


def recipe_label(place: int) -> str:
    """Return the letter of the recipe at a place in a table; after Z they are numbers."""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def experiment_of(provenance: Mapping[str, Any]) -> str | None:
    """Return the recipe (``experiment=NAME``) that was run, if it was one.

    A search on images of another folder (``data.search_val_dir``) does not count as the recipe.
    """
    command = str(provenance["command"])
    if setting_of(command, "data.search_val_dir") is not None:
        return None
    return setting_of(command, "experiment")
