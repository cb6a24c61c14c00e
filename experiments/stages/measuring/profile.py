"""Stage ``profile``: measures the latency of the layers on one runtime, and fits a model of the network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from amc.files import atomic_write_json
from amc.latency.prediction.build import build_profile
from amc.latency.prediction.cheap_widths import WIDTHS, typical_layer, width_costs
from amc.latency.prediction.layer_kinds import LayerKind
from amc.latency.prediction.profile import Progress
from amc.latency.prediction.table import default_folder
from amc.progress import progress
from amc.scoring.run import in_eval

if TYPE_CHECKING:
    from experiments.run.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``latency_model.json``; layers that were measured before, for any network, are looked up.

    Random weights are enough, because the latency of a layer does not depend on them.

    Raises:
        UnavailableError: the runtime does not run here.
    """
    problem, config = run.problem, run.config.profile
    graph = problem.graph
    probe = len(WIDTHS) if config.widths else 0
    with progress(None, "profile", "network", stays=True) as bar:

        def advance(done: int, measured: str) -> None:
            bar.set_postfix_str(measured)
            bar.update(done)

        def start(networks: int) -> Progress:
            bar.total = networks + probe
            bar.refresh()
            return advance

        profile = build_profile(
            in_eval(problem.fresh_model()),
            graph,
            run.space,
            problem.latency.runtime(),
            run.profile_settings(),
            tables=Path(config.tables) if config.tables is not None else default_folder(),
            seed=run.config.seed,
            start=start,
            name=config.backend,
        )
        model, found = profile.model, profile.accuracy
        atomic_write_json(problem.folder.latency_model, model.to_json())  # before what may still fail
        run.take_profile()
        widths = _cheap_widths(run, typical_layer(graph, profile.kinds)) if config.widths else {}
        advance(probe, "widths")
    print(
        f"profile: {model.target.runtime} on {model.target.device}, dense {profile.dense_ms:.3f} ms; "
        f"predictions are off by {found.median_error:.1%} (median) and {found.worst_error:.1%} (worst) on "
        f"{found.networks} others"
    )
    return {
        "target": model.target.to_json(),
        "asked": problem.latency.asked,
        "table": model.target.file_name,
        "measured_layers": profile.measured,
        "reused_layers": profile.reused,
        "dense_ms": profile.dense_ms,
        "predicted_dense_ms": model(graph.dense_widths),
        "minimum_latency_ratio": model(run.space.minimum) / model(graph.dense_widths),
        "factors": model.factors,
        **asdict(found),
        **widths,
    }


def _cheap_widths(run: Run, kind: LayerKind | None) -> dict[str, Any]:
    """Measure which multiple of channels ``budget.round_to`` should be on this runtime.

    Args:
        kind: the layer that is timed; None if the network has none of a kind that can be.
    """
    if kind is None:
        tqdm.write(
            "profile: which multiples of channels are cheap is not measured: the network has neither a "
            "linear layer nor a plain convolution"
        )
        return {}
    config = run.config.profile
    found = width_costs(
        kind,
        run.problem.latency.runtime(),
        batch=config.batch,
        threads=config.threads,
        rounds=config.rounds,
    )
    extra = ", ".join(f"{multiple}: {share:+.0%}" for multiple, share in found.extra.items())
    tqdm.write(
        f"profile: extra time of rounding widths up to multiples, {found.layer}: {extra}; "
        f"budget.round_to={found.cheap_multiple} costs next to nothing"
    )
    return {"widths": {**asdict(found), "cheap_multiple": found.cheap_multiple}}
