"""What agents ask of the compressor before they search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents import random_search
from amc.budget.allocation import Errors, uniform_widths
from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from amc.errors import AmcError, SettingError
from amc.notes import note_once
from amc.result import Evaluation
from envs import (
    CURVE_FEATURES,
    FEATURES,
    ChannelPruningEnv,
    ChannelWeightingEnv,
    GroupFeatures,
    Reward,
    get_reward,
)
from experiments.config.agents import (
    AgentKind,
    acts_of,
    check_agent,
    check_search,
    episodes_of,
    make_agent,
)
from experiments.config.arena import Arena
from experiments.config.presets import agent_preset
from experiments.config.sections.agents import AGENT_SECTIONS, AgentConfig
from tests.agents.offpolicy.test_imagination import arena as wrong_arena
from tests.fakes import FakeNetwork

SPACE = width_space(["a", "b"], [4, 4], round_to=1, min_preserve_ratio=0.25)
BUDGET = make_budget("macs", 0.5, lambda widths: 3.0 * widths[0] + widths[1], SPACE.dense)
CURVES: Errors = {"a": (math.inf, 9.0, 6.0, 3.0, 0.0), "b": (math.inf, 2.5, 1.0, 0.4, 0.0)}


def arena(curves: Callable[[], Errors] = lambda: CURVES, **changed: Any) -> Arena:
    """Return a problem that no agent runs."""
    features = [GroupFeatures(place, 4, 4, 1, 1, 1, 1, 16, 0) for place in range(2)]
    network = FakeNetwork((4, 4), (0.5, 0.5))
    dense = replace(network.evaluate(SPACE.dense), top1=100.0)
    parts = (network, SPACE, BUDGET, get_reward("accuracy"), features)
    return replace(Arena(*parts, curves=curves, dense=lambda: dense), **changed)


def bind(config: AgentConfig) -> int:
    """Bind an agent; return how often it asked for the curves."""
    asked = 0

    def curves() -> Errors:
        nonlocal asked
        asked += 1
        return CURVES

    make_agent(config, arena(curves), seed=0)
    return asked


@pytest.mark.parametrize("name", ["uniform", "deep", "shallow", "random"])
def test_agents_without_error_curves_measure_none(name: str) -> None:
    assert bind(AgentConfig(name=name)) == 0


@pytest.mark.parametrize(
    "config",
    [
        AgentConfig(name="greedy"),
        AGENT_SECTIONS["ddpg"](guide="greedy"),
        AGENT_SECTIONS["evolution"](guide="best"),
    ],
)
def test_agents_that_start_from_error_curves_measure_them(config: AgentConfig) -> None:
    assert bind(config) > 0


@pytest.mark.parametrize(
    "config",
    [
        AGENT_SECTIONS["ddpg"](guide="none"),
        AGENT_SECTIONS["netadapt"](guide="none"),
        AGENT_SECTIONS["thompson"](guide="none"),
    ],
)
def test_without_a_guide_nothing_is_measured_before_the_search(config: AgentConfig) -> None:
    assert bind(config) == 0


def test_weights_are_taken_where_they_are_possible() -> None:
    ddpg = agent_preset("ddpg")
    assert acts_of(ddpg, arena()) == "weights"
    assert acts_of(ddpg, arena(dict)) == "ratios"  # no error curves
    assert acts_of(ddpg, arena(budget=replace(BUDGET, enforced=False))) == "ratios"
    assert acts_of(replace(ddpg, guide="best"), arena()) == "ratios"  # it starts from other ratios
    assert acts_of(replace(ddpg, acts="ratios"), arena()) == "ratios"
    assert acts_of(agent_preset("ddpg_paper"), arena()) == "ratios"
    assert acts_of(agent_preset("netadapt"), arena()) == "ratios"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": "many"}, "episodes is refused: Value 'many' of type 'str' could not be converted"),
        ({"sigmma": 0.5}, "Key 'sigmma' not in"),
    ],
)
def test_a_faulty_setting_of_an_agent_is_named_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^agent=ddpg: {message}") as caught:
        agent_preset("ddpg", **settings)
    assert not any(noise in str(caught.value) for noise in ("full_key", "object_type", "\n"))


@pytest.mark.parametrize("name", ["random", "evolution", "tpe", "thompson", "ddpg"])
def test_every_agent_that_draws_may_act_by_weights(name: str) -> None:
    config = replace(agent_preset(name), acts="weights", episodes=8)
    check_agent(config, "obs")
    seen = []
    make_agent(config, arena(), seed=0)(1, seen.append)
    assert len(seen) == 8
    for episode in seen:
        assert BUDGET.fits(episode.info["evaluation"].widths)
        assert all(0 <= action <= 1 for action in episode.executed)


def test_the_environment_is_that_of_the_actions() -> None:
    assert isinstance(arena().env("ratios"), ChannelPruningEnv)
    assert isinstance(arena().env("weights"), ChannelWeightingEnv)


@pytest.mark.parametrize(
    ("config", "order", "message"),
    [
        (AgentConfig(name="random", acts="widths"), "obs", "expected one of auto, ratios, weights"),
        (AgentConfig(name="uniform", acts="weights"), "obs", "agent=uniform decides ratios"),
        (AGENT_SECTIONS["netadapt"](acts="weights"), "obs", "agent=netadapt decides ratios"),
        (AGENT_SECTIONS["ddpg"](acts="weights", guide="best"), "obs", "start from none or greedy"),
        (AgentConfig(name="random", acts="weights"), "l1", "needs order=obs"),
    ],
)
def test_impossible_acts_are_refused(config: AgentConfig, order: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_agent(config, order)


@pytest.mark.parametrize(
    ("config", "order", "message"),
    [
        (AgentConfig(name="random", guide="greedy"), "obs", "agent=random starts from none"),
        (AgentConfig(name="uniform", guide="best"), "obs", "agent=uniform starts from none"),
        (AGENT_SECTIONS["ddpg"](pretrained="actor", acts="ratios"), "obs", "with agent.acts=ratios"),
        (agent_preset("ddpg", pretrained="actor", guide="best"), "obs", "with agent.guide=best"),
        (agent_preset("ddpg", pretrained="actor", guide="none"), "l1", "with compressor.order=l1"),
        (AGENT_SECTIONS["tpe"](pretrained="actor"), "obs", "learns no weights"),
        (
            agent_preset("ddpg_paper", pretrained="actor", acts="weights"),
            "obs",
            "it needs agent.guide=greedy",
        ),
        (agent_preset("greedy", patience=20), "obs", "agent.patience=20 compares networks of a search"),
        (agent_preset("greedy", select="held_out"), "obs", "but agent=greedy makes one network"),
    ],
)
def test_settings_that_the_agent_would_ignore_are_refused(
    config: AgentConfig, order: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        check_agent(config, order)


OWN = AgentKind(lambda settings, arena, acts: random_search)
OWN_ALLOCATION = AgentKind(allocate=lambda arena: uniform_widths(arena.space, arena.budget))


@pytest.mark.parametrize("name", [f"{__name__}.OWN", f"{__name__}.OWN_ALLOCATION", "agents.random_search"])
def test_a_guide_that_an_own_agent_would_ignore_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"starts from none; write agent\.guide=none"):
        check_agent(AgentConfig(name=name, guide="greedy"), "obs")
    check_agent(AgentConfig(name=name), "obs")


def test_an_own_allocation_is_one_episode() -> None:
    counts = [episodes_of(AgentConfig(name=f"{__name__}.{name}")) for name in ("OWN", "OWN_ALLOCATION")]
    assert counts == [150, 1]


def test_layers_after_a_group_are_a_share_of_the_network_that_the_features_describe() -> None:
    features = [GroupFeatures(place, 4, 4, 1, 1, 1, 1, 16, 8) for place in range(2)]
    whole = 2 * FakeNetwork((4, 4), (0.5, 0.5)).macs((4, 4))
    plain, cut = (arena(features=features, dense_macs=macs) for macs in (None, whole))
    for acts, names in (("ratios", FEATURES), ("weights", CURVE_FEATURES)):
        first, second = (own.env(acts).reset()[0] for own in (plain, cut))
        rest = names.index("rest")
        assert first[rest] == pytest.approx(2 * second[rest])
        assert first[rest] > 0
        assert np.array_equal(np.delete(first, rest), np.delete(second, rest))


def test_requests_are_cut_where_they_are_ratios() -> None:
    cut = replace(BUDGET, fit="cut")
    assert acts_of(agent_preset("ddpg"), arena(budget=cut)) == "ratios"
    for config in (agent_preset("ddpg", acts="weights"), agent_preset("ddpg", pretrained="actor")):
        with pytest.raises(SettingError, match=r"budget\.fit is 'cut'"):
            check_search(config, get_reward("likeness"), "cut")


def test_a_warm_up_that_fills_the_search_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    note_once.cache_clear()
    make_agent(agent_preset("ddpg_paper", episodes=100), arena(), seed=0)
    assert "leaves agent=ddpg none of the 100 episodes to learn in: its networks are drawn at" in caplog.text
    make_agent(agent_preset("ddpg", episodes=5), arena(), seed=0)
    assert "its networks are that of agent.guide=greedy and draws around it; lower it" in caplog.text
    make_agent(agent_preset("tpe", episodes=5), arena(), seed=0)
    assert "that of agent.guide=greedy and others drawn at random; lower it" in caplog.text
    caplog.clear()
    make_agent(agent_preset("ddpg_paper", episodes=101), arena(), seed=0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sigma": 0.3}, "agent.sigma=0.3: no effect, as episodes explore by draws from the belief"),
        ({"sigma": 0.3, "imagined": 0}, ""),
        ({"sigma": 0.3, "acts": "ratios"}, ""),
        (
            {"imagined": 8, "prior": 0.5, "acts": "ratios"},
            "agent.imagined=8, agent.prior=0.5: no",
        ),
        ({"prior": 0.5}, ""),
        ({}, ""),
        (  # the values of the other file
            {"sigma": 0.5, "explore_share": 1.0, "sigma_decay": 0.95},
            "agent.sigma=0.5, agent.sigma_decay=0.95, agent.explore_share=1.0: no effect",
        ),
        ({"baseline_alpha": 0.1}, "agent.baseline_alpha=0.1: no effect, as agent.standardise=true"),
        ({"baseline_alpha": 0.1, "standardise": False}, ""),
        ({"tau": 0.5}, "agent.tau=0.5: no effect, as agent.gamma=0 asks no target network"),
        ({"tau": 0.5, "gamma": 0.9}, ""),
        ({"name": "ddpg_paper"}, ""),
        ({"name": "ddpg_paper", "follow_best": True}, "agent.follow_best=True: no effect, as there is no"),
        ({"name": "ddpg_paper", "follow_best": True, "guide": "uniform"}, ""),
        ({"name": "ddpg_paper", "imagined": 64}, "agent.imagined=64: no effect, as no episode is imagined"),
        ({"name": "evolution", "warmup_episodes": 30}, "agent.warmup_episodes=30: no effect, as agent=evol"),
        ({"name": "thompson", "warmup_episodes": 30}, "agent.warmup_episodes=30: no effect, as agent=thom"),
        ({"name": "thompson"}, ""),
        ({"name": "tpe", "warmup_episodes": 30}, ""),
    ],
    ids=str,
)
def test_settings_without_effect_are_noted(
    changed: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    note_once.cache_clear()
    settings = {"episodes": 200, **changed}
    name = settings.pop("name", "ddpg")
    make_agent(agent_preset(name, **settings), arena(), seed=0)
    assert caplog.text.count("no effect") == bool(told)
    assert told in caplog.text


def test_weights_need_a_budget() -> None:
    with pytest.raises(SettingError, match="needs a budget"):
        check_search(AgentConfig(name="random", acts="weights"), get_reward("accuracy_macs"))


def test_the_episodes_of_guides_are_not_those_of_the_agent() -> None:
    config = agent_preset("netadapt", episodes=21, steps=10, candidates=2)
    check_agent(config, "obs")
    with pytest.raises(SettingError, match="need 21 with the guide"):
        check_agent(replace(config, episodes=20), "obs")
    check_agent(replace(config, episodes=20, guide="none"), "obs")
    config = replace(config, episodes=20)
    with pytest.raises(SettingError, match="guide=best takes 3 of the 20"):
        check_agent(replace(config, guide="best"), "obs")


def thompson_networks(score: Callable[[Evaluation], float]) -> list[tuple[int, ...]]:
    """Return the networks of Thompson sampling under a reward, on curves that are each wrong by a factor."""
    config, seen = agent_preset("thompson", episodes=12), []
    make_agent(config, wrong_arena(reward=Reward("own", score)), seed=0)(1, seen.append)
    return [episode.info["evaluation"].widths for episode in seen]


@pytest.mark.parametrize(
    "score",
    [
        lambda found: found.agreement - 2.0 * found.macs_ratio,  # the dense network is far below
        lambda found: found.agreement / (1.0 - found.macs_ratio),  # it has no value
    ],
    ids=["a price", "a quotient"],
)
def test_a_reward_that_counts_costs_is_searched_as_well(score: Callable[[Evaluation], float]) -> None:
    """All networks have half of the costs, so both are the agreement up to a sum or a factor."""
    found = thompson_networks(score)
    assert len(set(found)) == 12
    assert found == thompson_networks(lambda evaluation: evaluation.agreement)


def test_a_reward_without_a_value_for_a_network_that_loses_nothing_is_named() -> None:
    with pytest.raises(AmcError, match=r"'own' fails: ZeroDivisionError.*the dense network.*agent=evolution"):
        thompson_networks(lambda found: -1.0 / found.agreement)
