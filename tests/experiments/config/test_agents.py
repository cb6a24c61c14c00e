"""What agents ask of the compressor before they search."""

from __future__ import annotations

import math

import gymnasium as gym
import pytest

from amc.budget.allocation import Errors
from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from experiments.config.agents import Knowledge, make_agent
from experiments.config.schema import AGENT_SECTIONS, AgentConfig

SPACE = width_space(["a", "b"], [4, 4], round_to=1, min_preserve_ratio=0.25)
BUDGET = make_budget("macs", 0.5, lambda widths: 3.0 * widths[0] + widths[1], SPACE.dense)
CURVES: Errors = {"a": (math.inf, 9.0, 6.0, 3.0, 0.0), "b": (math.inf, 2.5, 1.0, 0.4, 0.0)}


def no_env() -> gym.Env:
    raise AssertionError("no search is run here")


def bind(config: AgentConfig) -> int:
    """Bind an agent; return how often it asked for the curves."""
    asked = 0

    def curves() -> Errors:
        nonlocal asked
        asked += 1
        return CURVES

    make_agent(config, Knowledge(SPACE, BUDGET, curves, no_env, lambda: 0.0), seed=0)
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
