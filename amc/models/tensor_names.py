"""The names of a state dict's tensors: wrappers and earlier versions of a library name them otherwise."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from amc.models.state_files import same_tensors
from amc.notes import note_once

_WRAPPER_PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "classifier."),
    *("ema_model.", "teacher.", "student.", "detector."),
)
"""What DataParallel, torch.compile, Lightning modules, averages of weights and ``RawDetector`` put first."""
_TEACHER, _STUDENT = "teacher.", "student."
"""Prefixes of a network that only taught, and of the one that is wanted where both are in a file."""
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")
"""Names in torchvision's files of DenseNets: of modules that it has named anew, without the first point."""


def fitted(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str | Path
) -> dict[str, Tensor]:
    """Return ``state`` with the names that fit best: as they are, without or with a wrapper's prefix.

    Each of these is also read with the names that torchvision has given the modules of DenseNets since. Other
    weights that fit as well are noted.

    Args:
        state: name -> tensor, as a file has them.
        expected: name -> tensor, as the network has them.
        origin: names the source of ``state`` in the note.
    """
    readings = [
        ("", dict(state)),
        *((prefix, _without(state, prefix, expected)) for prefix in _removable(state)),
        *(("", {f"{prefix}{key}": value for key, value in state.items()}) for prefix in _prefixes(expected)),
    ]
    readings += [
        (prefix, {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in reading.items()})
        for prefix, reading in readings
        if any(map(_DENSE_LAYER.match, reading))
    ]
    agreements = [agreement(reading, expected) for _, reading in readings]
    most = max(agreements)
    (used, best), *tied = [each for each, own in zip(readings, agreements, strict=True) if own == most]
    shown = _of_network(best, expected)
    others = [prefix for prefix, reading in tied if not same_tensors(shown, _of_network(reading, expected))]
    if most[0] and others:
        note_once(
            f"{origin}: the weights {_named(used)} are used; those {_named(others[0])} would fit as well: to "
            "use those, save them alone"
        )
    return best


def agreement(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many names agree in shape, too, and how many agree at all."""
    shared = [key for key in state if key in expected]
    return sum(state[key].shape == expected[key].shape for key in shared), len(shared)


def _named(prefix: str) -> str:
    return f"whose names begin with {prefix!r}" if prefix else "whose names have no prefix"


def _of_network(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key in expected}


def _removable(state: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of wrappers as they come in ``state``, but teachers last if there are students."""
    found = _prefixes(state)
    if not any(_STUDENT in prefix for prefix in found):
        return found
    return sorted(found, key=lambda prefix: _TEACHER in prefix)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes of wrappers that some of the names have, such as "module." and "module.net."."""
    found: dict[str, None] = {}
    for name in names:
        end = 0
        while prefix := next((each for each in _WRAPPER_PREFIXES if name.startswith(each, end)), None):
            end += len(prefix)
            found[name[:end]] = None
    return list(found)


def _without(state: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outer = {key: value for key, value in state.items() if key in expected and not key.startswith(prefix)}
    return outer | inner
