"""The hash of everything that determines an evaluation; results with different hashes are never mixed."""

from __future__ import annotations

from dataclasses import asdict, fields

from torch import nn

from amc.candidate.settings import CandidateSettings
from amc.digest import digest, named
from amc.graph.groups import Graph
from amc.result import Evaluation


def fingerprint(model: nn.Module, graph: Graph, data_fingerprint: str, settings: CandidateSettings) -> str:
    """Return the hash of the network, its groups, the images, and the settings that change results.

    Two fields and one setting of earlier releases are still hashed, so that the fingerprints of published
    strategies do not change.
    """
    kept: dict[str, object] = {**asdict(settings), "racing_risk": 0.0}
    for unimportant in ("cache_mib", "measured_images", "measured_in_sequence"):
        del kept[unimportant]
    names = [*(field.name for field in fields(Evaluation)), "against", "stopped_after"]
    return digest(
        data_fingerprint,
        repr(sorted(names)),
        repr((graph.layers, graph.group_names)),
        *named(model.state_dict()),
        repr(sorted(kept.items())),
    )[:16]
