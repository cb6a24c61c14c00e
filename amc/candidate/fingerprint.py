"""The hash of all that decides an evaluation: other results are never mixed with those of another hash."""

from __future__ import annotations

from dataclasses import asdict, fields

from torch import nn

from amc.candidate.settings import CandidateSettings
from amc.digest import digest, named
from amc.graph.groups import Graph
from amc.result import Evaluation


def fingerprint(model: nn.Module, graph: Graph, data_fingerprint: str, settings: CandidateSettings) -> str:
    """Hash all that determines an evaluation: network, groups, images and settings that change results.

    Two fields and one setting of earlier releases are still hashed, so that the fingerprints of published
    strategies stay what they are.
    """
    kept: dict[str, object] = {**asdict(settings), "racing_risk": 0.0}
    for unimportant in ("cache_mib", "measured_images"):
        del kept[unimportant]
    names = [*(field.name for field in fields(Evaluation)), "against", "stopped_after"]
    return digest(
        data_fingerprint,
        repr(sorted(names)),
        repr((graph.layers, graph.group_names)),
        *named(model.state_dict()),
        repr(sorted(kept.items())),
    )[:16]
