"""A network made of numbers, which is all that the environment and the agents need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TypeVar
from unittest import mock

import numpy as np
import torch
from torch import nn

from amc.budget.budget import Budget, Fit, make_budget
from amc.budget.widths import WidthSpace, width_space
from amc.graph.layers import trace_layers
from amc.latency import Prepared
from amc.registry import Registry
from amc.result import Evaluation
from amc.runtimes.reference import eager_logits, random_batch
from envs import ChannelPruningEnv, Reward, get_reward
from envs.observation import GroupFeatures

T = TypeVar("T")


def registered(registry: Registry[T], **entries: T) -> AbstractContextManager[object]:
    """Have entries in a registry, new ones or others, for as long as the context lasts."""
    return mock.patch.dict(registry._entries, entries)


class FakeNetwork:
    """A chain of 1x1 layers whose accuracy has a known optimum.

    The cost is the sum of width * next width. The loss is the mean squared distance of the preserve ratios
    from ``optimum``.

    Attributes:
        calls: number of evaluations.
    """

    def __init__(self, dense: Sequence[int], optimum: Sequence[float]) -> None:
        self.dense = tuple(dense)
        self.optimum = tuple(optimum)
        self.calls = 0

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-adds of the chain, 3 inputs and 10 outputs."""
        chain = (3, *widths, 10)
        return sum(a * b for a, b in pairwise(chain))

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Evaluate widths by their distance from the optimum."""
        self.calls += 1
        ratios = [w / d for w, d in zip(widths, self.dense, strict=True)]
        loss = sum((r - o) ** 2 for r, o in zip(ratios, self.optimum, strict=True)) / len(ratios)
        macs = self.macs(widths)
        return Evaluation(
            widths=tuple(widths),
            top1=100.0 * (1.0 - loss),
            loss=loss,
            agreement=-loss,
            likeness=-loss,
            macs=macs,
            params=macs,
            macs_ratio=macs / self.macs(self.dense),
            params_ratio=macs / self.macs(self.dense),
            seconds=0.0,
        )


def fake_problem(
    optimum: Sequence[float] = (0.9, 0.3, 0.8, 0.4),
    *,
    ratio: float = 0.6,
    reward: Reward | None = None,
    round_to: int = 4,
    fit: Fit = "scale",
) -> tuple[ChannelPruningEnv, FakeNetwork, WidthSpace, Budget]:
    """Return an environment over a fake network of 40 channels a group, and its parts."""
    dense = (40,) * len(optimum)
    network = FakeNetwork(dense, optimum)
    names = [f"layer{i}" for i in range(len(dense))]
    space = width_space(names, dense, round_to=round_to, min_preserve_ratio=0.2)
    reward = reward or get_reward("accuracy")
    budget = make_budget("macs", ratio, network.macs, dense, enforced=reward.enforces_budget, fit=fit)
    features = [
        GroupFeatures(
            t=i,
            n=40,
            c=40 if i else 3,
            h=8 >> i,
            w=8 >> i,
            stride=1 + i % 2,
            k=1,
            macs=100 * (i + 1),
            rest=50,
        )
        for i in range(len(dense))
    ]
    return ChannelPruningEnv(network, space, budget, reward, features), network, space, budget


class Spinning:
    """A runtime whose time grows with the multiply-adds: a loop of 100 steps and one for each 64 of them.

    Real latencies of tiny networks are mostly overhead and noise.
    """

    name = "spinning"
    precision = "float32"

    def available(self) -> str | None:
        """Return None: it runs anywhere."""
        return None

    def version(self) -> str:
        """Return a version."""
        return "1"

    def prepare(
        self, model: nn.Module, input_shape: tuple[int, int, int], batch: int, threads: int
    ) -> Prepared:
        """Return a loop that is as long as ``model`` is large."""
        layers, _ = trace_layers(nn.Sequential(model, nn.Flatten()), torch.zeros(1, *input_shape))
        steps = 100 + batch * sum(layer.macs for layer in layers) // 64

        logits = eager_logits(model, random_batch(input_shape, batch))

        def run() -> np.ndarray:
            for _ in range(steps):
                pass
            return logits

        return Prepared(run)
