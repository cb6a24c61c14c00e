"""Weights of a file in a network: loaded strictly, or as far as they match."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import FileError
from amc.models.tensor_names import agreement, fitted
from amc.notes import note_once

_AUXILIARY = frozenset({"aux1", "aux2", "AuxLogits", "aux_classifier"})
"""Torchvision's heads that only train: its files have them, its networks are also built without."""


def load_matching(model: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> list[str]:
    """Load the tensors of ``state`` that match ``model`` by name and shape, as a start for training.

    Names count as for ``load_into``, older ones of torchvision included.

    Args:
        model: the network to fill.
        state: state dict, as ``load_state_dict`` returns it.
        origin: names the source of ``state`` in messages.

    Returns:
        Names of the tensors of ``model`` that keep their values.

    Raises:
        FileError: a tensor is not finite or complex, fewer than half of the network's tensors match, or a
            module refuses its tensors.
    """
    own = _tensors_of(model)
    state = fitted(state, own, origin)
    _check_finite(state, model, origin)
    _check_real(state, own, origin)
    fitting = agreement(state, own)[0]
    if 2 * fitting < len(own):
        raise FileError(
            f"{origin}: only {fitting} of the {len(own)} tensors of {type(model).__name__} are in it, "
            "expected at least half; likely cause: another architecture"
        )
    try:
        new, _ = _fill(model, state, own)
    except (RuntimeError, ValueError) as error:
        raise FileError(f"{origin}: {_last_line(error)}; likely cause: another architecture") from error
    return [key for key in own if key in new]


def _check_finite(state: Mapping[str, Tensor], model: nn.Module, origin: str | Path) -> None:
    """Refuse values that are not finite, but for the infinities that a buffer of the network has itself.

    Such buffers are masks, as of attention. Statistics of norms become infinite by training.

    Args:
        state: has the names of ``model``.

    Raises:
        FileError: names the first.
    """
    buffers = model.named_buffers(remove_duplicate=False)
    own = {key: mask for key, mask in buffers if not key.endswith(("running_mean", "running_var"))}
    for key, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        odd = ~torch.isfinite(tensor)
        if odd.any() and not _same_where(odd, tensor, own.get(key)):
            raise FileError(
                f"{origin}: {key} holds NaN or Inf, expected finite weights; likely cause: diverged training"
            )


def _same_where(places: Tensor, tensor: Tensor, other: Tensor | None) -> bool:
    """Return whether two tensors are equal at some places, where NaN equals nothing."""
    if other is None or other.shape != tensor.shape:
        return False
    return torch.equal(tensor[places], other.to(tensor)[places])


def _check_real(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str | Path) -> None:
    for key, tensor in state.items():
        if tensor.is_complex() and key in expected and not expected[key].is_complex():
            raise FileError(
                f"{origin}: {key} holds complex numbers, expected real ones; likely cause: another "
                "architecture"
            )


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> None:
    """Load ``state`` into ``model``; names and shapes must agree, and all values must be finite.

    Infinities of a buffer may stay where the network has the same ones, as in a mask of attention.

    Where more names agree without the prefix of a wrapper (DataParallel, torch.compile, a Lightning module),
    or with the one that the network itself has, that is how they are read. Tensors of a wrapper that lie
    outside of its prefix are not used. Where several prefixes fit equally well, with other tensors, it is
    noted which is read: the first in the file, but not a teacher's before a student's. Auxiliary heads that
    the network does not have are left out, which is noted. Names of earlier versions of torchvision are read,
    as torchvision itself reads them.

    Args:
        model: the network to fill; after an error some of its weights may be replaced.
        state: state dict, as ``load_state_dict`` returns it.
        origin: names the source of ``state`` in messages.

    Raises:
        FileError: a tensor is missing, unexpected, of another shape, complex or not finite; names the first.
    """
    expected = _tensors_of(model)
    state = fitted(state, expected, origin)
    _check_finite(state, model, origin)
    if heads := _heads_beside(state, expected):
        note_once(f"{origin}: left out {', '.join(heads)}, auxiliary heads that {type(model).__name__} lacks")
        state = {key: value for key, value in state.items() if key.partition(".")[0] not in heads}
    _check_real(state, expected, origin)
    try:
        new, unexpected = _fill(model, state, expected)
    except (RuntimeError, ValueError) as error:
        if unexpected := [key for key in state if key not in expected]:  # which tells more than one module
            new = [key for key in expected if key not in state]
            raise _misfit(model, state, new, unexpected, origin) from error
        raise FileError(
            f"{origin}: {_last_line(error)}; likely cause: a checkpoint of a network pruned differently"
        ) from error
    if new or unexpected:
        raise _misfit(model, state, new, unexpected, origin)


def _fill(
    model: nn.Module, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Load the tensors of ``state`` but those of another shape; modules may rename what older versions wrote.

    Returns:
        Names of the network's tensors that are not in ``state`` in their shape, and of what else is in it.

    Raises:
        RuntimeError: modules refuse their tensors; torch lists the reasons, one a line.
        ValueError: a module refuses a version.
    """
    misshapen = _misshapen(state, expected)
    given = OrderedDict((key, own) for key, own in state.items() if key not in misshapen)
    vars(given)["_metadata"] = _versions(model, state, expected)
    found = model.load_state_dict(given, strict=False)
    return list(dict.fromkeys((*misshapen, *found.missing_keys))), list(found.unexpected_keys)


def _versions(
    model: nn.Module, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the versions of modules, which torch keeps beside a state dict, of those that ``state`` fits.

    Files do not store it. MNASNet refuses tensors without a version. A module that was given its present one
    would neither rename tensors of an earlier one nor make up for those that it lacked.
    """
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]

    def fits(module: str) -> bool:
        inside = f"{module}." if module else ""
        lacking = [key for key in missing if key.startswith(inside)]
        own = any("." not in key.removeprefix(inside) for key in lacking)
        return not own and not (lacking and any(key.startswith(inside) for key in unexpected))

    about = getattr(model.state_dict(), "_metadata", {})
    return {module: version for module, version in about.items() if fits(module)}


def _misshapen(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: own for key, own in state.items() if key in expected and own.shape != expected[key].shape}


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _misfit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    new: Sequence[str],
    unexpected: Sequence[str],
    origin: str | Path,
) -> FileError:
    """Return the error about a state dict that does not fit a network.

    Args:
        state: has the names of ``model``.
        new: names of the network's tensors that ``state`` does not give, or in another shape.
        unexpected: names of ``state`` that the network lacks.
    """
    expected = _tensors_of(model)
    misshapen = _misshapen(state, expected)
    missing = [key for key in new if key not in misshapen]
    if misshapen:
        key, own = next(iter(misshapen.items()))
        first = f"{key} has shape {tuple(own.shape)}, expected {tuple(expected[key].shape)}"
    else:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unexpected"
    same_body = not missing and not unexpected and set(misshapen) <= _head_keys(expected)
    return FileError(
        f"{origin}: does not fit {type(model).__name__}: {first} ({len(missing)} missing, {len(unexpected)} "
        f"unexpected, {len(misshapen)} of another shape, {len(expected)} expected); likely cause: "
        + ("another num_classes" if same_body else "another architecture, width or pruning")
    )


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _heads_beside(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the auxiliary heads of ``state`` that the network does not have."""
    had, known = ({key.partition(".")[0] for key in names} & _AUXILIARY for names in (state, expected))
    return sorted(had - known)


def _head_keys(expected: dict[str, Tensor]) -> set[str]:
    """Return the keys of the last module in the state dict."""
    head = next(reversed(expected), "").rpartition(".")[0]
    return {key for key in expected if key.rpartition(".")[0] == head}
