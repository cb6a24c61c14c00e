"""Tables of named things, such as data sets or runtimes: a new one is one file and one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from amc.errors import SettingError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping from names to entries, whose refusal of an unknown name says which there are.

    Args:
        kind: what the entries are, for the message: ``"data set"``.
        entries: name -> entry, in the order in which they are listed.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        self._kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str, *, hint: str = "") -> T:
        """Return the entry called ``name``.

        Args:
            hint: what else could be given, added to the message.

        Raises:
            SettingError: there is none; the message lists the names and the nearest.
        """
        if name not in self._entries:
            near = did_you_mean(name, self._entries)
            raise SettingError(
                f"unknown {self._kind} {name!r}; expected one of {', '.join(self._entries)}{hint}{near}"
            )
        return self._entries[name]
