"""A Hydra config source for the group ``model``: it accepts any name, without a yaml file for each network.

``amc.models.build`` looks the name up: in the zoo, torchvision and timm, or as a dotted path.
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
        """Return True: the source needs no file."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether a path is the model group (or the root that holds it)."""
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether a path names a model."""
        return config_path.startswith(f"{GROUP}/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return an empty list: there are too many names; the help text describes them."""
        return []


def register() -> None:
    """Make the source known to Hydra."""
    Plugins.instance().register(ModelSource)
