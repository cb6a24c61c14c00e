"""What a network computes, stored with its weights, by which another one that takes these weights is found.

A network that is given as an object, and not by name, may be built anew with other arguments, or keep state
outside of its parameters and buffers. Names and shapes of its weights do not tell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc.cutting.trial import difference_of
from amc.errors import FileError, brief, out_of_memory
from amc.models.state_files import safetensors_metadata
from amc.scoring.flatten import as_matrix
from amc.scoring.precision import without_autocast
from amc.scoring.run import copied, in_eval, settle

IMAGES = 2
"""Random images for which outputs are stored."""

COLUMNS = 500
"""Most outputs of an image that are stored, evenly spread over all of them."""

TOLERANCE = 1e-3
"""Largest difference, relative to the largest output: other machines round otherwise."""

_KEY = "outputs"


def outputs_as_metadata(model: nn.Module, input_shape: Sequence[int]) -> dict[str, str]:
    """Return what a network computes, as metadata for the file of its weights (``save_safetensors``).

    Args:
        input_shape: (channels, height, width) of an image, in pixels.

    Returns:
        Nothing for a network that does not run, or gives NaN or infinity.
    """
    try:
        found = _outputs(model, input_shape)
    except Exception:  # whatever the network's own code raises: the weights are saved all the same
        return {}
    if not found.isfinite().all():
        return {}
    return {_KEY: json.dumps([[float(f"{value:.6g}") for value in row] for row in found.tolist()])}


def check_outputs(model: nn.Module, input_shape: Sequence[int], path: Path) -> None:
    """Refuse a network that computes something else with the weights of a file than the one that was saved.

    Args:
        model: the network, with these weights; it is left as it is.
        input_shape: (channels, height, width) of an image, in pixels.
        path: the file; one without stored outputs is not checked.

    Raises:
        FileError: the outputs differ, the network does not run, or the stored outputs cannot be read.
    """
    stored = safetensors_metadata(path).get(_KEY)
    if stored is None:
        return
    try:
        expected = torch.tensor(json.loads(stored), dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise FileError(f"{path}: cannot read the outputs in its metadata: {brief(error)}") from error
    try:
        found = _outputs(model, input_shape)
    except Exception as error:  # a user's network may raise anything
        if out_of_memory(error):
            raise
        raise _another(model, path, f"it fails: {brief(error)}") from error
    if found.shape != expected.shape:
        raise _another(model, path, "it has another number of outputs")
    difference = difference_of(expected, found)
    if not difference <= TOLERANCE:
        raise _another(model, path, f"outputs differ by {difference:.2g} of the largest")


def _another(model: nn.Module, path: Path, reason: str) -> FileError:
    return FileError(
        f"{path}: with these weights {type(model).__name__} computes something else than the network that "
        f"was saved ({reason}); likely cause: it was built with other arguments, or keeps state outside of "
        "its parameters and buffers"
    )


@without_autocast()
@torch.no_grad()
def _outputs(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return outputs of a copy on the CPU, in float32: (IMAGES, at most COLUMNS)."""
    # NumPy promises the same numbers in all its versions, torch does not
    drawn = np.random.RandomState(0).standard_normal((IMAGES, *input_shape))
    twin = in_eval(copied(settle(model)).cpu().float())
    found = as_matrix(twin(torch.from_numpy(drawn).float()), IMAGES)
    return found[:, :: -(-found.shape[1] // COLUMNS)]
