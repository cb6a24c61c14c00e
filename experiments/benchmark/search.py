"""Cost of an episode: ``python -m experiments.benchmark search --model mobilenet_v1 --resolution 32``.

The CPU seconds of one episode are split into building the candidate, its refit in sequence (where
``--sequential-images`` asks for one), its forward pass, scoring, and the agent with the rest. Beside them
stands the pure forward pass of the same networks, interleaved in the same process.
``--reference`` also times the official procedure of AMC, rewritten after its code: zero-masked weights at
full cost, and a scikit-learn least-squares solve on raw features for every layer of every episode.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from agents import DDPGSettings, Episode, ddpg_search
from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from amc.candidate.builder import CandidateBuilder
from amc.candidate.evaluator import Evaluator, channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.graph.groups import Graph, exclude_groups
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.graph.unfolding import layer_patches, layer_rows, sample_positions
from amc.models import ModelSpec, build
from amc.refit.moments import refit_layers
from amc.result import Evaluation
from amc.scoring.precision import AUTO, PRECISIONS, chosen_precision
from amc.scoring.run import copied, outputs
from envs import ChannelPruningEnv, get_reward
from envs.observation import group_features
from experiments.benchmark.arguments import at_least, positive

CLASSES = {True: 10, False: 1000}
PARTS = ("build", "refit", "forward", "scoring", "agent_and_rest")


class _Timed:
    """A compressor that times its parts, and the pure forward pass of each network beside them."""

    def __init__(self, evaluator: Evaluator[CandidateBuilder]) -> None:
        self._evaluator = evaluator
        self.rows: list[dict[str, float]] = []

    def macs(self, widths: Sequence[int]) -> int:
        return self._evaluator.macs(widths)

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        evaluator = self._evaluator
        images, size = evaluator.images, evaluator.batch_size
        evaluator.prepare()
        start = time.process_time()
        with evaluator.builder.network(widths) as model:
            built = time.process_time() - start
            forward, found = _cpu_seconds(lambda: outputs(model, images, size))
            own = copied(model)
        scoring, evaluation = _cpu_seconds(lambda: evaluator.judge(widths, found))
        pure, _ = _cpu_seconds(lambda: _forward(own, images, size))
        row = {"build": built, "refit": 0.0, "forward": forward, "scoring": scoring, "pure_forward": pure}
        row["beside"] = pure
        if evaluator.builder.settings.sequential_images:  # building again, without the refit
            row["build"], _ = _cpu_seconds(
                lambda: evaluator.builder.pruned_model(evaluator.builder.cut(widths))
            )
            row["refit"] = built - row["build"]
            row["beside"] += row["build"]
        self.rows.append(row)
        return evaluation


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure episodes of one network; see the module's docstring.

    Raises:
        AmcError: The model or the budget is wrong.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    small = options.resolution < 128
    shape = (3, options.resolution, options.resolution)
    spec = ModelSpec(options.model, CLASSES[small], shape)
    model = build(spec, trust_dotted_path=True).eval()
    images = torch.randn(options.images, *shape)
    labels = torch.randint(0, CLASSES[small], (options.images,))
    calibration = torch.randn(max(options.calibration, options.sequential_images), *shape)
    unlabelled = LabelledImages(calibration, torch.zeros(len(calibration), dtype=torch.long))
    graph = exclude_groups(
        trace(model, noise_image(model, shape)), [], prune_coupled=not options.keep_coupled
    )

    start = time.process_time()
    precision = chosen_precision(options.precision, torch.device("cpu"))
    settings = CandidateSettings(
        batch_size=options.batch_size,
        precision=precision,
        positions_per_image=options.positions,
        sequential_images=options.sequential_images,
        reestimate_norms=options.reestimate_norms,
    )
    evaluator = channel_evaluator(model, graph, unlabelled, LabelledImages(images, labels), settings)
    evaluator.prepare()
    one_off = time.process_time() - start

    episodes = _time_episodes(evaluator, graph, options)
    report = {
        "model": options.model,
        "resolution": options.resolution,
        "images": options.images,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "precision": precision,
        "sequential_images": options.sequential_images,
        "positions_per_image": options.positions,
        "seed": options.seed,
        "groups": len(graph.groups),
        "torch": torch.__version__,
        "one_off_cpu_seconds": one_off,
        **episodes,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.reference:
        report["reference"] = _time_reference(model, graph, images, calibration, report, options)
    return report


def _time_episodes(
    evaluator: Evaluator[CandidateBuilder], graph: Graph, options: argparse.Namespace
) -> dict[str, Any]:
    timed = _Timed(evaluator)
    space = width_space(graph.group_names, graph.dense_widths, round_to=options.round_to)
    budget = make_budget("macs", options.macs_ratio, evaluator.macs, graph.dense_widths)
    env = ChannelPruningEnv(timed, space, budget, get_reward("accuracy"), group_features(graph))
    totals: list[float] = []
    mark = time.process_time()
    bar = tqdm(total=options.episodes, desc="episodes", disable=None)

    def on_episode(_: Episode) -> None:
        nonlocal mark
        now = time.process_time()
        totals.append(now - mark)
        mark = now
        bar.update()

    agent = DDPGSettings(warmup_episodes=min(options.episodes // 2, 5))
    ddpg_search(
        [env], options.episodes, options.seed, on_episode, settings=agent, episode_length=env.episode_length
    )
    bar.close()
    rows = []
    for total, row in zip(totals[1:], timed.rows[1:], strict=True):  # the first warms up
        own = total - row["beside"]
        evaluation = row["build"] + row["refit"] + row["forward"]
        rest = own - evaluation - row["scoring"]
        rows.append({**row, "episode": own, "evaluation": evaluation, "agent_and_rest": rest})
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratios = sorted(row["episode"] / row["pure_forward"] for row in rows)
    return {
        "episodes": len(rows),
        "cpu_seconds_per_episode": median["episode"],
        "split": {name: median[name] for name in PARTS},
        "pure_forward_cpu_seconds": median["pure_forward"],
        "ratio_to_pure_forward": statistics.median(ratios),
        "evaluation_to_pure_forward": statistics.median(
            row["evaluation"] / row["pure_forward"] for row in rows
        ),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
    }


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor, batch_size: int) -> None:
    for start in range(0, len(images), batch_size):
        model(images[start : start + batch_size])


def _time_reference(
    model: nn.Module,
    graph: Graph,
    images: Tensor,
    calibration: Tensor,
    ours: dict[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Time AMC's official procedure on random policies of the same network."""
    features = _raw_features(model, graph, calibration)
    rng = np.random.default_rng(options.seed)
    rows = []
    for _ in tqdm(range(options.reference_episodes), desc="reference", disable=None):
        masked = copied(model)
        start = time.process_time()
        for group in graph.groups:
            _reference_prune(masked, group.readers, features, float(rng.uniform(0.2, 1.0)))
        solve = time.process_time() - start
        start = time.process_time()
        _forward(masked, images, 50)
        rows.append((solve, time.process_time() - start))
    solve, forward = (statistics.median(column) for column in zip(*rows, strict=True))
    total = solve + forward
    return {
        "episodes": len(rows),
        "cpu_seconds_per_episode": total,
        "split": {"least_squares": solve, "forward": forward},
        "ratio_to_ours": total / ours["cpu_seconds_per_episode"],
    }


def _raw_features(model: nn.Module, graph: Graph, images: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return inputs and outputs of every layer at 10 positions of each image, as the official code does.

    Both have one row for each image and position: (N * 10, inputs of a position) and (N * 10, outputs).
    """
    modules = dict(model.named_modules())
    features: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    generator = torch.Generator().manual_seed(0)

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            chosen = sample_positions(module, inputs[0], 10, generator)
            features[name] = (
                layer_patches(module, inputs[0], chosen).numpy(),
                layer_rows(module, output, chosen).numpy(),
            )

        return record

    handles = [modules[name].register_forward_hook(hook(name)) for name in refit_layers(graph)]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return features


def _reference_prune(
    model: nn.Module, readers: Sequence[str], features: dict[str, tuple[np.ndarray, np.ndarray]], ratio: float
) -> None:
    """Mask the input channels of smallest L1 norm and solve for the others, as ``prune_kernel`` does."""
    from sklearn.linear_model import LinearRegression

    modules = dict(model.named_modules())
    for name in readers:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        dense = weight.detach().flatten(2).numpy() if weight.ndim > 2 else weight.detach()[..., None].numpy()
        importance = np.abs(dense).sum(axis=(0, 2))
        kept = np.sort(np.argsort(-importance)[: max(1, round(ratio * len(importance)))])
        x, y = features[name]
        columns = (kept[:, None] * dense.shape[2] + np.arange(dense.shape[2])).ravel()
        solved = LinearRegression(fit_intercept=False).fit(x[:, columns], y).coef_
        full = np.zeros((len(dense), x.shape[1]), dtype=np.float32)
        full[:, columns] = solved
        with torch.no_grad():
            weight.copy_(torch.from_numpy(full).reshape(weight.shape))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``search``."""
    parser.add_argument("--model", default="mobilenet_v1", help="any name that amc's model= takes")
    parser.add_argument("--resolution", type=positive, default=32, help="image side in pixels")
    parser.add_argument("--images", type=positive, default=5000, help="validation images per episode")
    parser.add_argument("--calibration", type=positive, default=500, help="calibration images")
    parser.add_argument("--episodes", type=at_least(2), default=12)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument(
        "--precision", choices=(*PRECISIONS, AUTO), default="float32", help="of the candidates"
    )
    parser.add_argument(
        "--sequential-images",
        type=at_least(0),
        default=0,
        help="images that refit every candidate in sequence",
    )
    parser.add_argument(
        "--positions", type=positive, default=16, help="output positions sampled from each image"
    )
    parser.add_argument("--reestimate-norms", action="store_true", help="new batch-norm statistics")
    parser.add_argument("--macs-ratio", type=float, default=0.5)
    parser.add_argument("--round-to", type=positive, default=8)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-coupled", action="store_true", help="leave residual streams whole")
    parser.add_argument("--reference", action="store_true", help="also time AMC's official procedure")
    parser.add_argument("--reference-episodes", type=positive, default=3)
