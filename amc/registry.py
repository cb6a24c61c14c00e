"""Tables of named entries, such as data sets or runtimes: a new one is one file and one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from amc.dotted import imported, is_dotted, own_part
from amc.errors import SettingError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping from names to entries; ``find`` refuses an unknown name with a list of the known.

    Args:
        kind: the kind of the entries for messages, such as ``"data set"``.
        entries: name -> entry, in the order in which they are listed.
        own: makes an entry of what a dotted path names, or returns None if it is none; without it, ``find``
            imports nothing.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, T], own: Callable[[Any], T | None] | None = None
    ) -> None:
        self._kind = kind
        self._entries = dict(entries)
        self._own = own

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str, *, hint: str = "") -> T:
        """Return the entry called ``name``, or the user's own at a dotted path, where the table takes them.

        Args:
            name: name of an entry, or a dotted path that the user has given.
            hint: added to the message, such as other accepted values.

        Raises:
            SettingError: the name is unknown; the message lists the names and suggests the nearest. Or the
                path names something else.
            AmcError: the module of a path cannot be imported.
        """
        if name not in self._entries and self._own is not None and is_dotted(name):
            made = imported(name, self._kind)
            with own_part(self._kind, name):
                entry = self._own(made)
            if entry is None:
                raise SettingError(f"{self._kind} {name!r} is a {type(made).__name__}, which is none")
            return entry
        if name not in self._entries:
            near = did_you_mean(name, self._entries)
            raise SettingError(
                f"unknown {self._kind} {name!r}; expected one of {', '.join(self._entries)}{hint}{near}"
            )
        return self._entries[name]
