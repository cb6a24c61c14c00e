"""Tables of named entries, such as data sets or runtimes: a new one is one file and one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from amc.errors import SettingError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping from names to entries; ``find`` refuses an unknown name with a list of the known.

    Args:
        kind: the kind of the entries for messages, such as ``"data set"``.
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
            name: name of an entry.
            hint: added to the message, such as other accepted values.

        Raises:
            SettingError: the name is unknown; the message lists the names and suggests the nearest.
        """
        if name not in self._entries:
            near = did_you_mean(name, self._entries)
            raise SettingError(
                f"unknown {self._kind} {name!r}; expected one of {', '.join(self._entries)}{hint}{near}"
            )
        return self._entries[name]
