"""What one search teaches the next: an actor over the observations of groups, trained on several networks.

The observation describes a group, not its network, so one actor can serve any network (AMC section 3.1). A
finished search knows by which factor each group's error curve was wrong. The actor learns these factors from
the observations, and gives a new search the mean of its belief. Only their proportions count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

HIDDEN = 32
EPOCHS = 600
RATE = 3e-3
DECAY = 0.3
"""Weight decay of the training: with few networks the actor stays near no correction."""
KIND = "amc_transfer_actor"
PARTS = ("observations", "factors", "deviations")


@dataclass(frozen=True)
class Experience:
    """What the search of one network has learned.

    Attributes:
        observations: (G, features) of the groups.
        factors: (G,) by which the error curves were wrong, each positive.
        deviations: (G,) how sure each factor is: its standard deviation.
    """

    observations: np.ndarray
    factors: np.ndarray
    deviations: np.ndarray


class TransferActor(nn.Module):
    """Maps observations (G, features) of one network's groups to log-factors (G,) of mean 0."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), last)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the log-factors (G,)."""
        found: Tensor = self.layers(observations)[:, 0]
        return found - found.mean()

    def factors(self, observations: np.ndarray) -> tuple[float, ...]:
        """Return the expected factors (G,) of a network's groups.

        Raises:
            ValueError: the observations have other features than those it was trained on.
        """
        if observations.shape[1] != self.features:
            raise ValueError(
                f"the actor expects {self.features} features a group, not {observations.shape[1]}: it is "
                "of another release"
            )
        with torch.no_grad():
            return tuple(self(torch.as_tensor(observations)).double().exp().tolist())


def train_actor(experiences: Sequence[Experience], *, seed: int) -> TransferActor:
    """Train an actor on what several searches have learned; a network's groups count by how sure they are.

    Args:
        experiences: at least one.
        seed: of the initial weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        actor = TransferActor(experiences[0].observations.shape[1])
    parts = [_targets(own) for own in experiences]
    optimizer = torch.optim.AdamW(actor.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(EPOCHS):
        errors = [(weights * (actor(seen) - wanted).square()).mean() for seen, wanted, weights in parts]
        loss = torch.stack(errors).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return actor


def _targets(own: Experience) -> tuple[Tensor, Tensor, Tensor]:
    """Return observations, log-factors of mean 0, and weights of mean 1, of one network's groups."""
    logs = np.log(np.maximum(own.factors, 1e-3))
    weights = 1.0 / (np.square(own.deviations / np.maximum(own.factors, 1e-3)) + 0.01)
    weights = weights / weights.mean()
    wanted = logs - np.average(logs, weights=weights)
    seen, *rest = (torch.as_tensor(each, dtype=torch.float32) for each in (own.observations, wanted, weights))
    return seen, rest[0], rest[1]


def actor_bytes(actor: TransferActor, about: Sequence[str]) -> bytes:
    """Return an actor as a safetensors file; ``about`` names the networks it was trained on."""
    notes = {"kind": KIND, "features": str(actor.features), "networks": json.dumps(list(about))}
    return save(actor.state_dict(), notes)


def load_actor(path: Path) -> TransferActor:
    """Read an actor; no code in the file is run.

    Raises:
        ValueError: the file is missing, or is no such actor.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get("kind") != KIND:
                raise ValueError(f"{path} is no actor of experiments.pretrain")
            actor = TransferActor(int(notes["features"]))
            actor.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as an actor of experiments.pretrain: {reason}") from error
    return actor


def experience_bytes(found: Experience, network: str) -> bytes:
    """Return the contents of a file of what a search has learned of a network."""
    arrays = (found.observations, found.factors, found.deviations)
    tensors = {name: torch.as_tensor(array) for name, array in zip(PARTS, arrays, strict=True)}
    return save(tensors, metadata={"network": network})


def load_experience(path: Path) -> tuple[Experience, str]:
    """Return what a search has learned, and the name of its network.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            arrays = [file.get_tensor(name).numpy() for name in PARTS]
            network = (file.metadata() or {}).get("network", path.parent.name)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read ({reason}); expected the experience of a finished search: run "
            "stages=[search] on that folder again"
        ) from error
    if len({len(array) for array in arrays}) != 1 or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{path} is damaged: its parts do not fit together")
    return Experience(*arrays), network
