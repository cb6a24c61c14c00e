"""Weights on disk: read without running code, loaded strictly, written atomically."""

import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from amc.digest import digest, named, shown, unsaved
from amc.errors import FileError
from amc.files import atomic_write_bytes
from amc.notes import note_once
from amc.third_party import without_warnings

_TORCH_SUFFIXES = frozenset({".pth", ".pt", ".th", ".bin", ".ckpt", ".tar"})
_SAFETENSORS_SUFFIX = ".safetensors"
_NESTING_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "params"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema", "params_ema", "teacher", "student"),
)
"""Where trainers put a state dict; the first key that holds one counts, and others are noted."""
_WRAPPER_PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "classifier."),
    *("ema_model.", "teacher.", "student.", "detector."),
)
"""What DataParallel, torch.compile, Lightning modules, averages of weights and ``RawDetector`` put first."""
_TEACHER, _STUDENT = "teacher.", "student."
"""Prefixes of a network that only taught, and of the one that is wanted where both are in a file."""
_AUXILIARY = frozenset({"aux1", "aux2", "AuxLogits", "aux_classifier"})
"""Torchvision's heads that only train: its files have them, its networks are also built without."""
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")
"""Names in torchvision's files of DenseNets: of modules that it has named anew, without the first point."""
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_HARMLESS = (
    *(argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
)
"""Types of settings and scores beside the weights, which run no code when they are loaded."""


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pth, .pth.tar, .pt, .th, .bin or .ckpt file onto the CPU.

    No code in the file is run. A state dict under a usual key, such as "state_dict", "model" or "ema", is
    unwrapped; it is noted if the file has others. Names stay as they are stored: ``load_into`` and
    ``load_matching`` fit them to a network.

    Returns:
        Name -> tensor, each of the shape that is stored.

    Raises:
        FileError: the file is missing, empty or damaged, or holds anything but tensors.
    """
    path = Path(path).expanduser()
    _check_file(path)
    content = _read_safetensors(path) if path.suffix == _SAFETENSORS_SUFFIX else _read_torch(path)
    state = _unwrap(content, path)
    _check_plain(state, path)
    return state


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
    state = _fitted(state, own, origin)
    _check_finite(state, model, origin)
    _check_real(state, own, origin)
    fitting = _agreement(state, own)[0]
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
    state = _fitted(state, expected, origin)
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


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any shapes to a .safetensors file atomically.

    Tensors that share memory are each stored in full.

    Raises:
        FileError: the file cannot be written, or something is no tensor, such as an extra state of a module.
    """
    if strange := [key for key, own in tensors.items() if not isinstance(own, Tensor)]:
        key, kind = strange[0], type(tensors[strange[0]]).__name__
        raise FileError(
            f"{key} of the state dict is of type {kind}, expected a tensor"
            + ("; let get_extra_state return a tensor" if key.endswith("_extra_state") else "")
        )
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    atomic_write_bytes(path, safetensors.torch.save(copies, metadata))


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return what `save_safetensors` was told to write beside the tensors; nothing of a damaged file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 (hex) of the names, shapes, types and values of tensors."""
    about = {f"{name} {tuple(tensor.shape)} {tensor.dtype}": tensor for name, tensor in state.items()}
    return digest(*named(about))


def network_digest(model: nn.Module, *origin: str) -> str:
    """Return a SHA-256 (hex) of all that tells a network in training from another, as far as modules show it.

    Beside tensors, also those of buffers outside the state dict, it is what modules print about themselves,
    such as dropout and activations, and which parameters train. Plain values that the code of a ``forward``
    reads are not seen.

    Args:
        model: the network.
        origin: what it was built from, where that may set such values.
    """
    tensors = [state_digest(each) for each in (model.state_dict(), unsaved(model))]
    trained = sorted(name for name, own in model.named_parameters() if own.requires_grad)
    return digest(*tensors, shown(model), repr(trained), *origin)


def _check_file(path: Path) -> None:
    suffixes = sorted({_SAFETENSORS_SUFFIX, *_TORCH_SUFFIXES})
    if path.is_dir():
        raise FileError(f"{path}: got a directory, expected a checkpoint file ({', '.join(suffixes)})")
    if not path.exists():
        raise FileError(f"{path}: no such file, expected a checkpoint; likely cause: a typo in the path")
    if path.suffix not in suffixes:
        raise FileError(f"{path}: got the suffix {path.suffix!r}, expected one of {', '.join(suffixes)}")
    if not path.stat().st_size:
        raise FileError(
            f"{path}: got an empty file, expected a checkpoint; likely cause: an interrupted copy"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "safetensors") from error


def _check_no_program(path: Path) -> None:
    """Refuse a TorchScript or exported program, about which torch would warn before it fails.

    Raises:
        FileError: the file is one.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, "torch") from error
    if "constants.pkl" in names or "archive_format" in names:
        raise FileError(
            f"{path}: got a TorchScript or exported program, expected tensors only (loading programs runs "
            "code); save model.state_dict() of the original network instead"
        )


def _read_torch(path: Path) -> Any:
    _check_no_program(path)
    try:
        with torch.serialization.safe_globals([*_HARMLESS]), without_warnings():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise FileError(
                f"{path}: got a pickled Python object, expected tensors only (loading objects runs code); "
                "likely cause: saved with torch.save(model), or with objects beside the weights: save "
                "model.state_dict() instead"
            ) from error
        raise _unreadable(path, "torch") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _unreadable(path, "torch") from error


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense numbers: sparse, quantised, or far larger than the file.

    Raises:
        FileError: names the first.
    """
    for key, tensor in state.items():
        if (kind := _oddity(tensor)) is not None:
            raise FileError(
                f"{path}: {key} is {kind}, expected plain tensors; save them as dense copies "
                "(tensor.to_dense(), .dequantize(), .contiguous())"
            )


def _oddity(tensor: Tensor) -> str | None:
    """Return what a tensor is in place of dense numbers that a file holds, or None."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return f"on device {tensor.device.type}"
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() <= stored:
        return None
    return f"expanded to shape {tuple(tensor.shape)} from {stored} bytes"


def _unreadable(path: Path, form: str) -> FileError:
    size = path.stat().st_size
    return FileError(
        f"{path}: cannot read its {size} bytes, expected a {form} file; likely cause: a truncated copy or "
        "another format"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    if found := list(_states(content)):
        (used, state), *others = found
        if left := [key for key, other in others if not _same(state, other)]:
            note_once(
                f"{path}: the weights under {used!r} are used; it has others under "
                f"{', '.join(map(repr, left))}: to use those, save that state dict alone"
            )
        return state
    while isinstance(content, Mapping) and (keys := _nesting(content)):
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not content:
        got = "no tensors" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise FileError(f"{path}: got {got}, expected a state dict, or one under {', '.join(_NESTING_KEYS)}")
    key = next(key for key, value in content.items() if not _is_entry(key, value))
    raise FileError(
        f"{path}: entry {key!r} is of type {type(content[key]).__name__}, expected a state dict of tensors; "
        f"likely cause: weights under another key than {', '.join(_NESTING_KEYS)}"
    )


def _states(content: Any, under: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield key and tensors of the state dicts in ``content`` by rank; of nested ones the innermost."""
    if not isinstance(content, Mapping):
        return
    deeper = False
    for key in _nesting(content):
        for found in _states(content[key], f"{under}.{key}" if under else key):
            deeper = True
            yield found
    if not deeper and content and all(_is_entry(key, value) for key, value in content.items()):
        yield under, dict(content)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and values."""
    return one.keys() == other.keys() and all(
        own is other[key] or _equal(own, other[key]) for key, own in one.items()
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors are equal; of others the values are not looked at."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and _oddity(one) is None and _oddity(other) is None and torch.equal(one, other)


def _nesting(content: Mapping[Any, Any]) -> list[str]:
    return [key for key in _NESTING_KEYS if isinstance(content.get(key), Mapping)]


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _fitted(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str | Path
) -> dict[str, Tensor]:
    """Return ``state`` with the names that fit best: as they are, without or with a wrapper's prefix.

    Each of these is also read with the names that torchvision has given the modules of DenseNets since. Other
    weights that fit as well are noted.
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
    agreements = [_agreement(reading, expected) for _, reading in readings]
    most = max(agreements)
    (used, best), *tied = [each for each, own in zip(readings, agreements, strict=True) if own == most]
    shown = _of_network(best, expected)
    others = [prefix for prefix, reading in tied if not _same(shown, _of_network(reading, expected))]
    if most[0] and others:
        note_once(
            f"{origin}: the weights {_named(used)} are used; those {_named(others[0])} would fit as well: to "
            "use those, save them alone"
        )
    return best


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


def _agreement(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many names agree in shape, too, and how many agree at all."""
    shared = [key for key in state if key in expected]
    return sum(state[key].shape == expected[key].shape for key in shared), len(shared)


def _heads_beside(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the auxiliary heads of ``state`` that the network does not have."""
    had, known = ({key.partition(".")[0] for key in names} & _AUXILIARY for names in (state, expected))
    return sorted(had - known)


def _head_keys(expected: dict[str, Tensor]) -> set[str]:
    """Return the keys of the last module in the state dict."""
    head = next(reversed(expected), "").rpartition(".")[0]
    return {key for key in expected if key.rpartition(".")[0] == head}
