"""Sections of the configuration, derived from the settings that they fill: each default is written once.

Hydra needs mutable dataclasses, lists instead of tuples and strings instead of literals. The settings of the
library are frozen. ``section`` derives the former from the latter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import MISSING

PATH = "path"
"""Key in the metadata of a field whose value names a file; it is remembered as an absolute path."""


def section(
    name: str,
    settings: type[Any],
    doc: str,
    own: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    without: Collection[str] = (),
    bases: tuple[type, ...] = (),
) -> type[Any]:
    """Return a mutable dataclass with the fields of ``settings``.

    Args:
        name: name of the new class.
        settings: a dataclass; the configuration must give the fields that have no default.
        doc: docstring of the new class.
        own: field -> (type, default or ``dataclasses.field``): further fields, or other defaults.
        without: fields that are left out.
        bases: dataclasses that the new class derives from.
    """
    hints, own = get_type_hints(settings), own or {}
    taken = [each for each in fields(settings) if each.name not in without and each.name not in own]
    derived = [(each.name, _plain(hints[each.name]), _default(each)) for each in taken]
    added = [(key, kind, _own(default)) for key, (kind, default) in own.items()]
    made = make_dataclass(name, [*derived, *added], bases=bases, kw_only=True)
    made.__doc__ = doc
    made.__module__ = "experiments.config.schema"
    return made


def path(default: Any = None) -> Any:
    """Return a field whose value names a file."""
    return field(default=default, metadata={PATH: True})


def keys_of_paths(node: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of the sections in it whose values name files."""
    hints = get_type_hints(node)
    for each in fields(node):
        if PATH in each.metadata:
            yield f"{prefix}{each.name}"
        elif isinstance(inner := hints[each.name], type) and is_dataclass(inner):
            yield from keys_of_paths(inner, f"{prefix}{each.name}.")


def keys_of(node: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of the sections in it that hold values."""
    hints = get_type_hints(node)
    for each in fields(node):
        if isinstance(inner := hints[each.name], type) and is_dataclass(inner):
            yield from keys_of(inner, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}"


def _plain(hint: Any) -> Any:
    """Return the type that Hydra supports: a list for a tuple, a string for a literal."""
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    if get_origin(hint) is Literal:
        return str
    return hint


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not NO_DEFAULT:
        return field(default_factory=each.default_factory)
    return field(default=MISSING) if each.default is NO_DEFAULT else _own(each.default)


def _own(default: Any) -> Any:
    if isinstance(default, Field):
        return default
    if isinstance(default, tuple | list):
        return field(default_factory=lambda: list(default))
    return field(default=default)
