"""Modules that share a parameter with another module."""

from __future__ import annotations

from collections import defaultdict

from torch import nn


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Return the modules with a parameter that another module holds too, each with this reason.

    A new or a smaller parameter would have to be the other's as well.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners[id(tensor)].append(name)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for kind, tensor in module._parameters.items():
            others = [other for other in owners.get(id(tensor), []) if other != name]
            if others and name not in found:
                found[name] = f"{name} shares its {kind} with {', '.join(others)}"
    return found


def tied_layers(model: nn.Module) -> dict[str, str]:
    """Return the convolutions and linear layers among the ``tied_modules``."""
    layers = {name for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    return {name: why for name, why in tied_modules(model).items() if name in layers}
