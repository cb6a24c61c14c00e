"""Lets ``model=NAME`` take any name: a Hydra config source that answers for the whole ``model`` group.

Names are resolved when the network is built (``amc.models.build``), which knows torchvision, timm and dotted
paths without a yaml file for each.
"""

from __future__ import annotations

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

GROUP = "model"


class ModelSource(ConfigSource):
    """Serves ``model/NAME`` as ``{name: NAME}``."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme under which ``hydra.searchpath`` names this source."""
        return "models"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the configuration of one name."""
        name = config_path.removeprefix(f"{GROUP}/").removesuffix(".yaml")
        return ConfigResult(
            config=OmegaConf.create({"name": name}),
            path=f"{self.scheme()}://{name}",
            provider=self.provider,
            header={"package": None},
        )

    def available(self) -> bool:
        """Return True: nothing is needed."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether a path is the model group (or the root that holds it)."""
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether a path names a model."""
        return config_path.startswith(f"{GROUP}/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List nothing: the names are endless, and the help text says which they are."""
        return []


def register() -> None:
    """Make the source known to Hydra."""
    Plugins.instance().register(ModelSource)
