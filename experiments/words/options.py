"""The keys of the configuration, from the schema: ``python -m experiments.words.options`` writes the page.

The tables stand in docs/options.md between two marks, below the guidance that is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING

from amc.files import atomic_write_text
from experiments.config.presets import agent_preset
from experiments.config.schema import Config
from experiments.config.sections.agents import AGENT_SECTIONS
from experiments.config.sections.data import DATA_SECTIONS
from experiments.report.text import markdown

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
BEGIN, END = "<!-- keys: python -m experiments.words.options -->\n", "<!-- end of keys -->\n"


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Attributes:
        name: dotted, such as ``agent.episodes``.
        section: the first part of the name; empty for keys of the job itself.
        type: such as ``int`` or ``list of str``.
        default: as it is written on the command line, with the option's own file in ``conf``; ``given by the
            group`` where options differ.
        of: options that have the key, such as ``ddpg``; empty if all have it.
    """

    name: str
    section: str
    type: str
    default: str
    of: tuple[str, ...] = ()


@cache
def keys() -> tuple[Key, ...]:
    """Return every key, in the order of the schema; those of agents and data sets name who has them."""
    agents = {name: (node, agent_preset(name)) for name, node in AGENT_SECTIONS.items() if name != "agent"}
    return (
        *_keys_of_job(),
        *_shared("agent", agents),
        *_shared("data", {node.name: (node, None) for node in DATA_SECTIONS}),
    )


def _keys_of_job() -> Iterator[Key]:
    """Yield the keys of all sections that every job has, with the values of ``conf/config.yaml``."""
    given = yaml.safe_load((files("conf") / "config.yaml").read_text())
    for key in _keys(Config):
        yield replace(key, default=_shown(given[key.name])) if key.name in given else key


def _keys(node: Any, prefix: str = "") -> Iterator[Key]:
    hints = get_type_hints(node)
    for each in fields(node):
        name, kind = f"{prefix}{each.name}", hints[each.name]
        if name in ("agent", "data"):
            continue
        if isinstance(kind, type) and is_dataclass(kind):
            made = _default(each)
            yield from (_with_defaults(key, made) for key in _keys(kind, f"{name}."))
        else:
            yield Key(name, prefix.split(".")[0], _type(kind), _shown(_default(each)))


def _with_defaults(key: Key, made: Any) -> Key:
    """Return a key of a section with the value that the section has in a job."""
    value = getattr(made, key.name.rpartition(".")[2], None)
    if is_dataclass(value) or not hasattr(made, key.name.rpartition(".")[2]):
        return key
    return replace(key, default=_shown(value))


def _shared(section: str, nodes: dict[str, tuple[Any, Any]]) -> Iterator[Key]:
    """Yield the keys of a section that differs by option, each once.

    Args:
        section: its name.
        nodes: option -> its schema, and the section that the option makes, or None for the schema's defaults.
    """
    found: dict[str, list[tuple[str, Key]]] = {}
    for option, (node, made) in nodes.items():
        for key in _keys(node, f"{section}."):
            found.setdefault(key.name, []).append((option, _with_defaults(key, made)))
    for name, own in found.items():
        defaults = dict.fromkeys(key.default for _, key in own)
        default = ", ".join(defaults) if len(defaults) <= 2 else "differs"
        of = () if len(own) == len(nodes) else tuple(option for option, _ in own)
        yield Key(name, section, own[0][1].type, default, of)


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not NO_DEFAULT:
        return each.default_factory()
    return MISSING if each.default is NO_DEFAULT else each.default


def _shown(value: Any) -> str:
    if value == MISSING:
        return "given by the group"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and "[" not in str(kind) else str(kind)
    text = re.sub(r"\b[\w.]+\.", "", text)
    text = re.sub(r"list\[(\w+)\]", r"list of \1", text)
    return text.replace(" | None", " or null").replace("dict[str, Any]", "object")


def tables() -> str:
    """Return all keys as Markdown, a table for each section."""
    parts = []
    for section in dict.fromkeys(key.section for key in keys()):
        own = [key for key in keys() if key.section == section]
        some = any(key.of for key in own)
        rows = [["key", "type", "default", *(["only for"] if some else [])]]
        rows += [
            [f"`{key.name}`", key.type, f"`{key.default}`", *([", ".join(key.of)] if some else [])]
            for key in own
        ]
        parts.append(f"### {section or 'The job'}\n\n{markdown(rows)}\n")
    return "\n".join(parts)


def with_tables(page: str) -> str:
    """Return the page with the tables of today between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


if __name__ == "__main__":
    atomic_write_text(PAGE, with_tables(PAGE.read_text()))
