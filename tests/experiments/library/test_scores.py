"""Scores and rewards of the user's own, and what they may do."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amc
from amc.errors import AmcError
from tests.experiments.library.helpers import LABELS, images, network


def test_a_score_of_ones_own_decides_in_place_of_labels() -> None:
    model, probe = network(), images(8)
    wanted = model(probe).detach()

    def closeness(candidate: nn.Module) -> float:
        return -float((candidate(probe) - wanted).square().mean())

    result = amc.compress(
        model, images(32), images(), macs_ratio=0.6, agent="random", episodes=6, score=closeness
    )
    returns = [line["return"] for line in result.report["episodes"]]
    assert result.report["candidate"]["return"] == max(returns) < 0


def test_a_score_of_ones_own_judges_the_dense_network_as_it_judges_others() -> None:
    probe = images(8)

    def size(candidate: nn.Module) -> float:
        return -float(np.square(candidate(probe).numpy()).mean())  # numpy takes no tensor with gradients

    settings = {"agent": "ddpg", "episodes": 7, "score": size, "progress": False}
    result = amc.compress(network(), images(32), images(), macs_ratio=0.6, **settings)
    assert len(result.report["episodes"]) == 7


def raises(error: Exception) -> Callable[[nn.Module], float]:
    """Return a score that raises this error."""

    def fail(_: nn.Module) -> float:
        raise error

    fail.__name__ = "<lambda>"
    return fail


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda _: math.nan, "returns nan; expected a finite number"),
        (lambda _: None, "returns None; expected"),
        (lambda _: "0.9", "returns '0.9'; expected"),
        (lambda _: torch.zeros(2, 30), r"returns tensor\(.*; expected"),
        (lambda _: 1 / 0, "fails: ZeroDivisionError: division by zero"),
        (raises(RuntimeError("one\ntwo")), "fails: RuntimeError: one two$"),
        (raises(AmcError("needs one\ntwo")), "needs one two$"),
    ],
)
def test_a_score_that_fails_or_is_no_number_is_refused(
    score: Callable[[nn.Module], Any], message: str
) -> None:
    task = amc.CompressionTask(network(), images(32), images(16), macs_ratio=0.9, score=score, progress=False)
    with pytest.raises(AmcError, match=f"score '<lambda>' {message}") as caught:
        task.evaluate(task.space.minimum)
    assert "\n" not in str(caught.value)


def trained_in_place(candidate: nn.Module) -> float:
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(candidate.train()(3 * images()), LABELS)
        loss.backward()
        torch.optim.SGD(candidate.parameters(), lr=0.1).step()
    return 0.5


def test_what_a_score_does_to_its_network_changes_no_other() -> None:
    given = network(), images(32), (images(), LABELS)
    scored, plain = (
        amc.CompressionTask(*given, macs_ratio=0.5, round_to=1, score=score, progress=False)
        for score in (trained_in_place, None)
    )
    for widths in ((3, 5, 4), (4, 4, 4), scored.graph.dense_widths):
        found = [task.evaluate(widths) for task in (scored, plain)]
        assert replace(found[0], seconds=0.0) == replace(found[1], seconds=0.0)
    assert torch.equal(*(task.prune((4, 4, 4)).model(images()) for task in (scored, plain)))


def test_what_a_score_or_a_callback_draws_does_not_change_a_search() -> None:
    def draw(_: Any) -> float:
        return float(torch.rand(1)) + np.random.rand() + random.random()

    def score(candidate: nn.Module) -> float:
        draw(candidate)
        return -float(candidate(images(4)).square().mean())

    task = amc.CompressionTask(
        network(), images(16), images(16), macs_ratio=0.5, round_to=1, score=score, progress=False
    )
    settings = {"episodes": 4, "warmup_episodes": 1, "hidden": [8]}
    first, again, drawing = (
        task.search("ddpg_paper", on_episode=callback, **settings).report["episodes"]
        for callback in (None, None, draw)
    )
    assert first == again == drawing


def test_a_reward_that_enforces_no_budget_says_so_in_a_line_and_in_the_report(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"macs_ratio": 0.5, "agent": "random", "episodes": 4, "progress": False}
    for reward in ("accuracy", "accuracy_macs", "accuracy_macs"):  # told again by a second call
        caplog.clear()
        result = amc.compress(network(), images(32), (images(), LABELS), reward=reward, **settings)
        enforced = reward == "accuracy"
        assert result.report["budget"]["enforced"] == result.strategy.budget["enforced"] == enforced
        assert ("does not enforce the budget" in caplog.text) == (not enforced)
        assert ("may exceed macs_ratio=0.5" in caplog.text) == (not enforced)


def said(call: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> bool:
    """Call, and return whether it says that the budget is not enforced."""
    caplog.clear()
    call()
    return "may exceed macs_ratio=0.5" in caplog.text


def test_a_budget_that_is_not_enforced_is_told_by_whatever_may_exceed_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for reward, told in (("accuracy", False), ("accuracy_macs", True)):
        task = amc.CompressionTask(
            network(), images(32), (images(), LABELS), macs_ratio=0.5, reward=reward, progress=False
        )
        assert said(task.env, caplog) == told
        assert not said(lambda task=task: task.env(enforced=False), caplog)
        assert not said(lambda task=task: task.prune(task.space.minimum), caplog)
        assert said(task.result, caplog) == told
    whole = task.graph.dense_widths
    assert said(lambda: task.prune(whole), caplog)
    assert task.prune(whole).report["reached"] == {"macs": 1.0}
