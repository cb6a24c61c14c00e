"""A pruning strategy: how many channels each group keeps, as a frozen value and a versioned JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.files import atomic_write_json
from amc.reading import mismatch, read_json

VERSION = 1
_SHAPE = {
    "groups": [{"name": str, "dense": int, "kept": int}],
    "macs_ratio": float,
    "params_ratio": float,
    "seed": int,
    "model?": {},
    "provenance?": {"value?": float},
    "budget?": {"kind?": str, "ratio?": (float, None)},
}


@dataclass(frozen=True)
class GroupWidth:
    """The width of one channel group: ``kept`` of its ``dense`` channels stay."""

    name: str
    dense: int
    kept: int

    @property
    def preserve_ratio(self) -> float:
        """Kept share of the group, in (0, 1]."""
        return self.kept / self.dense


@dataclass(frozen=True)
class Strategy:
    """The widths of all channel groups of one network, in forward order.

    Attributes:
        groups: one entry per channel group.
        macs_ratio: pruned / dense multiply-adds at these widths.
        params_ratio: pruned / dense parameters at these widths.
        seed: seed of the search that found it.
        model: the description of the dense network (``amc.models.ModelSpec.to_json()``).
        budget: the constraint it was searched under, e.g. ``{"kind": "macs", "ratio": 0.5}``.
        provenance: free-form facts on its origin.
    """

    groups: tuple[GroupWidth, ...]
    macs_ratio: float
    params_ratio: float
    seed: int
    model: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the widths.

        Raises:
            FileError: a group keeps less than one channel, or more than it has.
        """
        for group in self.groups:
            if not 1 <= group.kept <= group.dense:
                raise FileError(
                    f"strategy keeps {group.kept} of {group.dense} channels in group {group.name!r}; "
                    f"expected 1 to {group.dense}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Kept channels of every group, in forward order."""
        return tuple(group.kept for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` inverts it exactly."""
        return {
            "_version": VERSION,
            "macs_ratio": self.macs_ratio,
            "params_ratio": self.params_ratio,
            "seed": self.seed,
            "budget": dict(self.budget),
            "model": dict(self.model),
            "groups": [{"name": g.name, "dense": g.dense, "kept": g.kept} for g in self.groups],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "strategy") -> Strategy:
        """Read the JSON form.

        Args:
            where: names the source of ``data`` in messages.

        Raises:
            FileError: another version, or a missing or malformed field.
        """
        if data.get("_version") != VERSION:
            raise FileError(
                f"{where} has _version {repr(data.get('_version'))[:20]}; this release reads {VERSION}"
            )
        if (fault := mismatch(data, _SHAPE)) is not None:
            raise FileError(f"{where} is malformed: {fault}; expected the fields of strategy.json")
        return cls(
            groups=tuple(GroupWidth(g["name"], g["dense"], g["kept"]) for g in data["groups"]),
            macs_ratio=float(data["macs_ratio"]),
            params_ratio=float(data["params_ratio"]),
            seed=data["seed"],
            model=data.get("model", {}),
            budget=data.get("budget", {}),
            provenance=data.get("provenance", {}),
        )

    def save(self, path: Path) -> None:
        """Write the JSON form atomically.

        Raises:
            FileError: the file cannot be written.
        """
        atomic_write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Strategy:
        """Read a ``strategy.json``.

        Raises:
            FileError: the file is missing, is not a JSON object, is of another version, or is malformed.
        """
        data = read_json(Path(path), {}, "expected a strategy.json: run stages=[search] again")
        return cls.from_json(data, f"strategy {path}")

    def widths_for(self, names: Sequence[str], dense: Sequence[int]) -> tuple[int, ...]:
        """Return the width of every group of a network; groups that the strategy lacks keep all channels.

        Args:
            names: the network's groups in forward order.
            dense: their dense widths.

        Raises:
            FileError: the network lacks a group of the strategy, or has it with another dense width.
        """
        full = dict(zip(names, dense, strict=True))
        for group in self.groups:
            if group.name not in full:
                raise FileError(
                    f"strategy has channel group {group.name!r}, which the network does not have or leaves "
                    "whole; is it for another network?"
                )
            if group.dense != full[group.name]:
                raise FileError(
                    f"strategy has {group.dense} channels in group {group.name!r}, the network has "
                    f"{full[group.name]}; is it for another network?"
                )
        kept = {group.name: group.kept for group in self.groups}
        return tuple(kept.get(name, width) for name, width in full.items())
