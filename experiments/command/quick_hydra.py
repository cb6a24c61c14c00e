"""Two workarounds of Hydra 1.3, which together start a job in half the time and ``amc --help`` in a third.

- Hydra copies its config repository before each composition, and for each config group whose options it lists
  (``CachingConfigRepository``), because a composition may replace the list of sources. One source refers to
  the `ConfigStore`, and the copy includes all schemas of Hydra and of this package. It may as well share
  them: no composition changes the store, whose ``load`` returns copies.
- Hydra composes each configuration twice, the first time only to read ``hydra.mode`` (``Hydra.get_mode``). No
  file of ``conf`` sets it, so that only an override of Hydra's own or a folder of the user's can. Without
  either the answer is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore

_PROVIDERS = {"hydra", "main", "schema"}
"""Where options come from if the user adds no folder (``--config-dir``)."""


@cache
def quicken() -> None:
    """Install both workarounds in this process."""
    setattr(ConfigStore, "__deepcopy__", _itself)  # noqa: B010  (mypy knows of no such method)
    composed_mode = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        if may_set_mode(overrides, self.config_loader.get_search_path()):
            return composed_mode(self, config_name, overrides)
        return None

    setattr(Hydra, "get_mode", get_mode)  # noqa: B010


def may_set_mode(overrides: Sequence[str], sources: ConfigSearchPath) -> bool:
    """Whether ``hydra.mode`` can differ from its default, None."""
    own = any(override.lstrip("+~").startswith("hydra") for override in overrides)
    return own or any(source.provider not in _PROVIDERS for source in sources.get_path())


def _itself(store: ConfigStore, _memo: dict[int, Any]) -> ConfigStore:
    return store
