"""Lets Hydra share its store of schemas instead of copying it, so that ``amc --help`` takes half the time.

Hydra 1.3 copies its config repository before each composition, and for each config group whose options it
lists (``CachingConfigRepository``), because a composition may replace the list of sources. One source refers
to the `ConfigStore`, and the copy includes all schemas of Hydra and of this package. It may as well share
them: no composition changes the store, whose ``load`` returns copies.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore


def share() -> None:
    """Make copies of the store be the store itself; more than one call does no harm."""
    setattr(ConfigStore, "__deepcopy__", _itself)  # noqa: B010  (mypy knows of no such method)


def _itself(store: ConfigStore, _memo: dict[int, Any]) -> ConfigStore:
    return store
