"""The hash of everything that determines an evaluation; results with different hashes are never mixed."""

from __future__ import annotations

from dataclasses import asdict, fields

from torch import nn

from amc.candidate.settings import CandidateSettings
from amc.digest import digest, named, shown, unsaved
from amc.graph.groups import Graph
from amc.result import Evaluation


def fingerprint(
    model: nn.Module, graph: Graph, data_fingerprint: str, settings: CandidateSettings, *origin: str
) -> str:
    """Return the hash of the network, its groups, the images, and the settings that change results.

    Modules count with what they print about themselves, such as paddings and activations. The code of a
    network's own ``forward`` does not, nor does the rounding of another device or number of threads.

    Args:
        model, graph: the dense network and its groups.
        data_fingerprint: hash of the images.
        settings: how candidates are made.
        origin: what the network was built from, where its code may read what no tensor and no module shows.
    """
    kept: dict[str, object] = asdict(settings)
    for unimportant in ("cache_mib", "measured_images", "measured_in_sequence"):
        del kept[unimportant]
    names = [field.name for field in fields(Evaluation)]
    return digest(
        data_fingerprint,
        repr(sorted(names)),
        repr((graph.layers, graph.group_names)),
        shown(model),
        *named(model.state_dict()),
        *named(unsaved(model)),
        repr(sorted(kept.items())),
        *origin,
    )[:16]
