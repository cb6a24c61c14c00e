"""Stage ``search``: an agent looks for the widths of every channel group."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from agents import Episode
from amc.compressor import Compressor
from amc.errors import Stopped
from amc.pruning import SlicePlan, check_exactness
from envs import ChannelPruningEnv
from envs.observation import group_features
from experiments.agents import make_agent
from experiments.episodes import EpisodeWriter

if TYPE_CHECKING:
    from experiments.run import Run


def run(run: Run) -> dict[str, Any]:
    """Write ``search.jsonl``, ``strategy.json`` and, where the agent learns, ``agent.zip``.

    An interrupted search keeps its best strategy; run again on the same folder it answers all that was
    evaluated from ``evaluations.jsonl`` and goes on to the result of an unbroken run.
    """
    start = time.perf_counter()
    run.budget.check_feasible(run.space)
    agent, episodes = make_agent(run.config.agent, run.space, run.budget, run.config.seed)
    difference = check_exactness(run.dense, run.graph, SlicePlan(run.graph, run.dense), samples=1)
    compressor = _compressor(run)
    env = ChannelPruningEnv(
        network=compressor,
        space=run.space,
        budget=run.budget,
        reward=run.reward,
        features=group_features(run.graph),
    )
    with (
        EpisodeWriter(run.folder / "search.jsonl") as writer,
        tqdm(total=episodes, desc="search", unit="episode", disable=None) as bar,
    ):

        def on_episode(episode: Episode) -> None:
            evaluation = episode.info["evaluation"]
            if writer.write(episode, evaluation):
                save_strategy(run, episode, episodes)
            best = writer.best_evaluation
            bar.set_postfix(best_top1=f"{best.top1:.2f}%", best=f"{writer.best_value:.4g}")
            bar.update()
            metrics = {"return": episode.value, "top1": evaluation.top1, "macs_ratio": evaluation.macs_ratio}
            run.tracker.log({f"search/{k}": v for k, v in metrics.items()}, episode.index)

        try:
            result = agent(env, on_episode)
        except KeyboardInterrupt as stop:
            kept = f"the best strategy of {writer.count} episodes is in {run.folder}/strategy.json"
            none = "no episode had ended"
            again = f"the same command with run_dir={run.folder} goes on"
            raise Stopped(f"search stopped; {kept if writer.count else none}; {again}") from stop
    if result.save is not None:
        result.save(run.folder / "agent.zip")
    best = result.best.info["evaluation"]
    budget = f"{run.budget.kind}_ratio {getattr(best, f'{run.budget.kind}_ratio'):.4f}"
    found = f"{best.top1:.2f}% on search_val at {budget}"
    print(f"search: {result.agent} found {found} in {result.episodes} episodes")
    return {
        "agent": result.agent,
        "episodes": result.episodes,
        "best_return": result.best.value,
        "best_episode": result.best.index,
        "best_top1": best.top1,
        "dense_top1": compressor.dense.top1,
        "evaluations": writer.distinct,
        "evaluation_cpu_seconds": writer.cpu_seconds,
        "seconds": round(time.perf_counter() - start, 2),
        "exactness": difference,
    }


def _compressor(run: Run) -> Compressor:
    total = len(run.splits.calibration) if run.config.compressor.refit else 0
    with tqdm(total=total, desc="calibrate", unit="image", disable=None, leave=False) as bar:
        return run.compressor(memo=True, progress=bar.update)


def save_strategy(run: Run, episode: Episode, episodes: int) -> None:
    """Write the best strategy so far."""
    evaluation = episode.info["evaluation"]
    strategy = run.make_strategy(
        evaluation.widths,
        agent=run.config.agent.name,
        reward=run.reward.name,
        value=episode.value,
        episode=episode.index,
        episodes=episodes,
        search_val_top1=evaluation.top1,
    )
    strategy.save(run.folder / "strategy.json")
