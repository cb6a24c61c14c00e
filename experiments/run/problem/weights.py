"""The weights of a job's dense network: where they come from, and the images that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from amc.data import Splits
from amc.data.pictures import Pictures
from amc.errors import FileError
from amc.models.checkpoint import load_into, load_matching
from amc.models.state_files import load_state_dict, safetensors_metadata, save_safetensors
from amc.notes import note_once
from experiments.config.schema import Config
from experiments.run.folder import PICTURES, PLACES, RunFolder
from experiments.run.values import comes_trained, searches_apart

_ABOUT = "model"
"""Key of the metadata of ``dense.safetensors``: which model the weights are of."""
STARTS_TRAINED = "starts_trained"
"""Key of the record of ``train``: whether the training started from all weights of another one."""


class DenseWeights:
    """Weights of the dense network: those that the configuration names, else those in the run folder.

    Args:
        config: the checked configuration.
        folder: the run folder of the job.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder

    @property
    def given(self) -> bool:
        """Whether the configuration names weights."""
        return comes_trained(self._config)

    @property
    def exist(self) -> bool:
        """Whether there are weights of a trained dense network."""
        return self.given or self._folder.dense.exists()

    def require(self) -> None:
        """Make sure that there are weights of a trained dense network.

        Raises:
            FileError: there are none.
        """
        if not self.exist:
            self._folder.require(self._folder.dense, "train", ", or give model.checkpoint=FILE")

    def load_into(self, model: nn.Module) -> None:
        """Load the trained weights into the dense network; downloaded ones are in it already.

        Raises:
            FileError: there are no trained weights, their file is damaged, or it names another model.
            AmcError: they do not fit the network.
        """
        checkpoint, stored = self._config.model.checkpoint, self._folder.dense
        if checkpoint is not None:
            load_into(model, load_state_dict(checkpoint), checkpoint)
        elif stored.exists() and not self._are_of_another_model:
            self._check_model(stored)
            load_into(model, load_state_dict(stored), str(stored))
        else:
            self.require()

    def start(self, model: nn.Module) -> list[str]:
        """Load what fits of ``model.start`` into the network that is to be trained; name what stays new.

        Raises:
            FileError: the file is missing or damaged, or too little of it fits.
        """
        file = self._config.model.start
        return [] if file is None else load_matching(model, load_state_dict(file), file)

    def starts_trained(self, fresh: Callable[[], nn.Module]) -> bool:
        """Whether the dense network is trained, or was, from a start that has all of its weights.

        The start may have been trained on the images that are held out now, whatever the new training leaves
        out. One of other classes has not been judged by them: its classifier is new.

        Args:
            fresh: builds the network with its initial weights.
        """
        if "train" not in self._config.stages:
            known: bool | None = self._recorded.get(STARTS_TRAINED)
            if known is not None:
                return known
        file = self._config.model.start
        if file is None:
            return False
        if not Path(file).expanduser().exists():  # of an earlier command, whose record does not tell
            return True
        model = fresh()
        return not set(self.start(model)) & {name for name, _ in model.named_parameters()}

    def save(self, model: nn.Module) -> None:
        """Write a network to the run folder as the dense one, with the name of the model that it is of."""
        save_safetensors(model.state_dict(), self._folder.dense, {_ABOUT: self._about()})

    @property
    def held_out(self) -> int | None:
        """Number of images that were held out when the folder's dense network was trained, if known."""
        kept: int | None = self._recorded.get("held_out")
        return kept

    @property
    def _recorded(self) -> dict[str, Any]:
        """The record of the stage that trained the folder's dense network, as far as there is one."""
        try:
            return self._folder.recorded("train") or {}
        except FileError:  # which is told when the record is shown
            return {}

    def search_images_trained_on(self, splits: Splits) -> int:
        """Return the number of search images that an earlier call has trained the folder's network on.

        It is 0 where nothing is known. Of pictures every one is known, of other images how many were held
        out: the first ones, whatever their number (``amc.data.picking``).
        """
        if "train" in self._config.stages or self.given:
            return 0
        if splits.pictures is not None and self._folder.trained_on.exists():
            return self.trained_among(splits.pictures, "search_val") or 0
        if searches_apart(self._config) or not splits.takes_from_training:
            return 0
        kept = self.held_out
        return 0 if kept is None else max(0, splits.search_images - kept)

    def trained_among(self, pictures: Pictures, part: str) -> int | None:
        """Return how many pictures of a part the folder's network was trained on; None if that is not kept.

        A picture counts under its path from ``data.root``, and under its place on this machine. Files of
        earlier releases have only the first, so that another ``data.root`` hides their pictures.

        Raises:
            FileError: there is no such file, or it is damaged.
        """
        trained = load_state_dict(self._folder.trained_on)
        if PICTURES not in trained:
            return None
        return pictures.among(part, trained[PICTURES], trained.get(PLACES))

    @property
    def _are_of_another_model(self) -> bool:
        """Whether the stored weights must not take the place of pretrained ones; a line tells it.

        Files of earlier releases do not say what they are of, and are loaded.
        """
        model, file = self._config.model, self._folder.dense
        stored = safetensors_metadata(file).get(_ABOUT)
        if not model.pretrained or stored in (None, self._about()):
            return False
        note_once(
            f"{file} is of another model, {stored}; the pretrained weights of {model.name} take its place"
        )
        return True

    def _check_model(self, stored: Path) -> None:
        """Refuse stored weights of another network: they may have the shapes of this one's all the same."""
        try:
            about = json.loads(safetensors_metadata(stored).get(_ABOUT, "null"))
        except ValueError:  # another program's
            return
        own = json.loads(self._about())
        if not isinstance(about, dict) or all(about.get(key) == own[key] for key in ("name", "kwargs")):
            return
        found, expected = (f"{each.get('name')} {each.get('kwargs') or ''}".rstrip() for each in (about, own))
        raise FileError(
            f"{stored} is of model {found}, but model {expected} is asked for: run stages=[train] first, use "
            f"another run_dir, or give model.checkpoint={stored} if these weights are meant"
        )

    def _about(self) -> str:
        """Return in JSON what the weights of the dense network are of."""
        model = self._config.model
        about = {"name": model.name, "kwargs": dict(model.kwargs), "pretrained": model.pretrained}
        return json.dumps(about, sort_keys=True, default=str)
