"""The library's front door: one call, any kind of images, any agent, and the command's own results."""

import ast
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3 import TD3
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import amc
from agents import Episode, SearchEnded
from amc import data as datasets
from amc.data import LabelledImages
from amc.data.mixing import mixed
from amc.errors import AmcError
from amc.latency.prediction import build
from amc.latency.prediction.profile import NetworkTimes
from amc.latency.registry import BACKENDS
from amc.models import plain20, resnet20
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict, save_safetensors
from amc.notes import note_once
from experiments import examples
from experiments.library.images import collect_images
from tests.experiments.helpers import FAKE, TINY, done, read_lines, workspace
from tests.fakes import Spinning, registered

LABELS = torch.arange(64) % 4


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def timed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Yield options of a limit on the latency of `Spinning`; its tables are in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile = amc.ProfileSettings(points=2, rounds=1, fit=1, held_out=1)
    with registered(BACKENDS, spinning=Spinning()):
        yield {"latency_ratio": 0.9, "runtime": "spinning", "profile": profile, "progress": False}


def test_the_same_seed_gives_the_strategy_and_the_weights_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = workspace(tmp_path)
    done(*TINY, "run_dir=run", "agent=ddpg", "stages=[train,search,prune]", cwd=cwd)
    options = dict(word.removeprefix("data.").split("=") for word in FAKE if word.startswith("data."))
    splits = datasets.build(
        "fake", **{key: int(value) for key, value in options.items()}, batch_size=32, seed=0
    )
    monkeypatch.syspath_prepend(cwd)
    import mynet

    dense = mynet.make(4)
    load_into(dense, load_state_dict(cwd / "run/dense.safetensors"), "dense")
    task = amc.CompressionTask(dense.eval(), splits.calibration, splits.search_val, macs_ratio=0.5)
    result = task.search("ddpg", episodes=4, warmup_episodes=2)
    del sys.modules["mynet"]

    assert result.strategy.groups == amc.Strategy.load(cwd / "run/strategy.json").groups
    ours = [line["widths"] for line in result.report["episodes"]]
    assert ours == [line["widths"] for line in read_lines(cwd / "run/search.jsonl")]
    theirs = load_file(cwd / "run/pruned.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in result.model.state_dict().items())


@pytest.mark.parametrize(
    "validation",
    [
        (images(), LABELS),
        TensorDataset(images(), LABELS),
        DataLoader(TensorDataset(images(), LABELS), batch_size=24),
        [{"image": images(), "label": LABELS}],
    ],
    ids=["pair", "data set", "loader", "dictionaries"],
)
def test_images_of_any_kind_with_labels_give_one_network(validation: object) -> None:
    result = amc.compress(network(), images(32), validation, macs_ratio=0.5, agent="greedy", progress=False)
    assert result.strategy.macs_ratio <= 0.5
    assert result.report["pruned"]["macs"] == result.report["candidate"]["macs"]
    assert 0 <= result.report["pruned"]["top1"] <= 100
    assert [group.kept for group in result.strategy.groups] == result.report["pruned"]["widths"]
    expected = amc.compress(network(), images(32), (images(), LABELS), macs_ratio=0.5, agent="greedy")
    assert torch.equal(result.model(images()), expected.model(images()))


def test_images_that_come_class_by_class_are_used_in_a_mixed_order() -> None:
    sorted_ones = LabelledImages(images(), LABELS.sort().values)
    options = {"macs_ratio": 0.5, "agent": "greedy", "progress": False}
    result = amc.compress(network(), sorted_ones, sorted_ones, **options)
    expected = amc.compress(network(), mixed(sorted_ones), mixed(sorted_ones), **options)
    assert torch.equal(result.model(images()), expected.model(images()))
    assert result.report["pruned"]["refit"] == "traced"


def test_the_result_is_a_plain_network_that_trains_and_is_rebuilt_from_its_folder(tmp_path: Path) -> None:
    result = amc.compress(network(), images(32), images(), params_ratio=0.6, agent="greedy")
    assert result.report["pruned"]["top1"] is None  # no labels, no accuracy
    assert result.strategy.params_ratio <= 0.6
    result.save(tmp_path / "out")
    again = amc.load_pruned(tmp_path / "out", network())
    assert torch.equal(again(images()), result.model(images()))
    other = network()
    other[2] = nn.Tanh()
    with pytest.raises(amc.AmcError, match=r"computes something else .* built with other arguments"):
        amc.load_pruned(tmp_path / "out", other)
    result.model.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())


def test_a_binary_classifier_with_one_output_is_judged_by_likeness() -> None:
    model = nn.Sequential(*list(network())[:-1], nn.Linear(8, 1)).eval()
    judging = (images(), LABELS % 2)
    result = amc.compress(
        model, images(32), judging, macs_ratio=0.5, reward="agreement", agent="greedy", progress=False
    )
    found = result.report["candidate"]
    assert found["top1"] is None
    assert found["agreement"] == found["likeness"] < 0
    assert amc.CompressionTask(model, images(32), judging, macs_ratio=0.5).reward.name == "likeness"


@pytest.mark.slow
def test_a_limit_on_the_bytes_counts_weights_as_they_will_be_stored() -> None:
    found = {}
    for bits in (8, 4):
        quantize = amc.QuantizeSettings(method="weight_only", weight_bits=bits)
        given = {"size_ratio": 0.2, "quantize": quantize, "agent": "greedy", "round_to": 1}
        found[bits] = amc.compress(network(), images(32), images(), min_preserve_ratio=0.05, **given)
        assert found[bits].strategy.budget["kind"] == "size"
    assert found[8].strategy.params_ratio < found[4].strategy.params_ratio


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


@pytest.mark.filterwarnings("ignore:.*ERROR")  # Gymnasium shows the other process's error, too
def test_environments_are_stepped_in_the_process_of_their_task() -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, progress=False)
    for kind in (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv):
        envs = kind([task.env, task.env])
        envs.reset()
        actions = np.full((2, 1), 0.5, np.float32)
        for _ in range(task.env().episode_length - 1):
            envs.step(actions)
        there = kind is gym.vector.AsyncVectorEnv
        with pytest.raises(amc.SettingError, match=r"use .*SyncVectorEnv") if there else nullcontext():
            envs.step(actions)
        envs.close()
    assert task.result().report["search"]["evaluations"] == 1


def test_a_search_is_the_same_under_autocast(tmp_path: Path) -> None:
    def found() -> tuple[Any, ...]:
        task = amc.CompressionTask(
            network(), images(32), (images(), LABELS), macs_ratio=0.5, round_to=1, progress=False
        )
        task.env("weights")  # measures the error curves
        scores = replace(task.evaluate((3, 5, 4)), seconds=0.0)
        result = task.search("greedy")
        result.save(tmp_path)
        amc.load_pruned(tmp_path, network())
        return scores, result.report, result.model

    *expected, model = found()
    with torch.autocast("cpu", torch.bfloat16):
        *given, other = found()
    amc.load_pruned(tmp_path, network())
    assert given == expected
    assert torch.equal(other(images()), model(images()))


@contextmanager
def left_alone() -> Iterator[None]:
    """Check that the global random states are the same afterwards."""
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_the_callers_network_and_random_numbers_are_left_alone() -> None:
    model = network().train()
    with left_alone():
        amc.compress(model, images(32), images(), macs_ratio=0.5, agent="ddpg", episodes=6, progress=False)
    assert all(module.training for module in model.modules())


def test_the_measurements_of_a_latency_leave_the_callers_random_numbers_alone(
    timed_layers: dict[str, Any],
) -> None:
    given = network(), images(32), images()
    with left_alone():
        task = amc.CompressionTask(*given, **{**timed_layers, "latency_ratio": 1.0})
        task.prune(task.space.minimum)


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


def said(call: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> bool:
    """Call, and return whether it says that the budget is not enforced."""
    caplog.clear()
    call()
    return "may exceed macs_ratio=0.5" in caplog.text


def test_a_task_searches_with_its_own_seed_unless_another_is_given() -> None:
    task = amc.CompressionTask(
        network(), images(16), images(16), macs_ratio=0.5, round_to=1, seed=5, progress=False
    )
    own, same, other = (
        task.search("random", episodes=3, **given) for given in ({}, {"seed": 5}, {"seed": 0})
    )
    assert (own.strategy.seed, other.strategy.seed) == (5, 0)
    tried = [[line["widths"] for line in found.report["episodes"]] for found in (own, same, other)]
    assert tried[0] == tried[1] != tried[2]


@pytest.mark.parametrize(
    ("acts", "message"),
    [("ratio", "acts is 'ratio'; expected 'ratios' or 'weights'; did you mean 'ratios'"), (None, "is None")],
)
def test_a_misspelt_kind_of_actions_is_refused(acts: Any, message: str) -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, progress=False)
    with pytest.raises(amc.SettingError, match=message):
        task.env(acts)


def test_whole_numbers_and_fractions_of_numpy_are_taken() -> None:
    task = amc.CompressionTask(
        network(), images(16), images(16), macs_ratio=0.5, round_to=np.int64(2), progress=False
    )
    settings = {"warmup_episodes": np.int64(1), "sigma": np.float32(0.5)}
    result = task.search("ddpg_paper", episodes=np.int64(2), seed=np.int64(3), **settings)
    assert len(result.report["episodes"]) == 2
    assert json.dumps(dict(result.report))


def test_a_callback_ends_a_search_with_the_result_so_far() -> None:
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, round_to=1, progress=False)

    def end_third(episode: Episode) -> None:
        if episode.index == 2:
            raise SearchEnded

    assert len(task.search("random", episodes=6, on_episode=end_third).report["episodes"]) == 3
    with pytest.raises(AmcError, match=r"^the search was ended after 3 episodes, none of which may win"):
        task.search("netadapt", guide="none", episodes=12, steps=4, on_episode=end_third)


def test_netadapt_takes_its_steps_under_a_limit_on_the_bytes() -> None:
    """As int8 the dense network keeps a quarter of its bytes: the way to 0.1 starts there."""
    task = amc.CompressionTask(
        network(), images(16), images(16), size_ratio=0.1, round_to=1, min_preserve_ratio=0.1, progress=False
    )
    lines = task.search("netadapt", guide="none", episodes=9, steps=3).report["episodes"]
    phases = [line["phase"] for line in lines]
    assert phases[:6] == ["relaxed"] * 6
    assert set(phases[6:]) == {"search"}


OWN_AGENTS = """
from agents.baselines import random_search

def own(envs, episodes, seed, on_episode):
    return random_search(envs, episodes, seed + 1, on_episode)

def silent(envs, episodes, seed, on_episode):
    return random_search(envs, episodes, seed, lambda episode: None)

def nothing(envs, episodes, seed, on_episode):
    return None
"""


def test_an_agent_of_ones_own_is_named_as_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_agents.py").write_text(OWN_AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    task = amc.CompressionTask(network(), images(16), images(16), macs_ratio=0.5, round_to=1, progress=False)
    own = task.search("random", name="own_agents.own", episodes=3, seed=0)
    assert own.report["episodes"] == task.search("random", episodes=3, seed=1).report["episodes"]
    for name, message in (
        ("silent", "'own_agents.silent' returned a best episode that it has not given to on_episode"),
        ("nothing", "'own_agents.nothing' returned NoneType; expected agents.SearchResult"),
        ("missing", "own_agents has no 'missing'"),
    ):
        with pytest.raises(AmcError, match=message):
            task.search("random", name=f"own_agents.{name}", episodes=2)
    del sys.modules["own_agents"]


def test_the_networks_that_a_search_has_evaluated_are_its_own() -> None:
    task = amc.CompressionTask(network(), images(32), images(), macs_ratio=0.5, progress=False)
    for seed in (0, 1):
        report = task.search("random", episodes=5, seed=seed).report
        assert report["search"]["evaluations"] == len({tuple(line["widths"]) for line in report["episodes"]})


@pytest.mark.parametrize("made_there", [False, True])
@pytest.mark.parametrize(
    "without_gradients", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode]
)
def test_a_network_is_compressed_where_gradients_are_off(
    without_gradients: Callable[[], AbstractContextManager[Any]], made_there: bool
) -> None:
    settings = {"agent": "ddpg", "episodes": 7, "progress": False, "macs_ratio": 0.5}
    given = network(), images(32), images()
    expected = amc.compress(*given, **settings)
    with without_gradients():
        found = amc.compress(*((network(), images(32), images()) if made_there else given), **settings)
    assert found.strategy.groups == expected.strategy.groups
    assert torch.equal(found.model(images()), expected.model(images()))
    found.model.train()(images()).sum().backward()


def test_one_name_stands_for_a_list_of_one() -> None:
    settings = {"macs_ratio": 0.7, "agent": "greedy", "progress": False}
    found = amc.compress(network(), images(32), images(), exclude="3*", **settings)
    assert [group["name"] for group in found.report["left_whole"]] == ["9", "3"]  # 9 is the classifier
    assert amc.QuantizeSettings(exclude="fc*").exclude == ("fc*",)
    with pytest.raises(amc.SettingError, match="unknown runtime 'onnx'"):
        amc.compare(network(), network(), (3, 8, 8), backends="onnx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 0}, r"profile\.held_out is 0; expected at least 1"),
        ({"points": 1}, r"profile\.points is 1; expected at least 2"),
        ({"repairs": -1}, r"profile\.repairs is -1; expected at least 0"),
    ],
)
def test_impossible_settings_of_a_profile_are_refused_before_any_measurement(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(amc.SettingError, match=message):
        amc.ProfileSettings(**settings)


def test_widths_that_the_user_chooses_are_kept_or_refused_under_a_limit_on_the_latency(
    timed_layers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over: list[tuple[int, ...]] = []

    def measure(*arguments: Any, **_: Any) -> NetworkTimes:
        ratios = [0.93 if tuple(widths) in over else sum(widths) / 32 for widths in arguments[2]]
        return NetworkTimes(1.0, ratios, "A CPU", "1")

    monkeypatch.setattr(build, "measure_networks", measure)
    task = amc.CompressionTask(network(), images(32), images(), **timed_layers)
    chosen = task.space.minimum[0] + 4, *task.space.minimum[1:]
    assert task.budget.allows(chosen)
    over.append(chosen)
    with pytest.raises(
        amc.SettingError, match=r"widths take 0\.9300 of the dense latency, as measured, over"
    ):
        task.prune(chosen)
    assert task.prune(task.space.minimum).report["reached"]["latency"] == sum(task.space.minimum) / 32
    monkeypatch.setattr(task, "_found", {chosen: 0.0})
    assert task.result().report["latency"]["measured"] < 0.9
    assert "takes 0.9300 of the dense latency, as measured, over latency_ratio=0.9: a smaller" in caplog.text


BLACK = torch.zeros(3, 8, 8)


class Entries(Dataset[Any]):
    """A data set of given entries."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: int) -> Any:
        return self.entries[place]


class Boxes(Dataset):
    """A data set for detection: each image has another number of boxes."""

    def __init__(self, sizes: tuple[int, ...] = (8, 8)) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return 16

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.sizes[place % 2]
        return torch.randn(3, size, size), torch.zeros(place % 3, 4)


def test_a_data_set_of_boxes_gives_its_images() -> None:
    found, labelled = collect_images(Boxes(), "validation")
    assert (tuple(found.images.shape), labelled) == ((16, 3, 8, 8), False)
    with pytest.raises(amc.SettingError, match="cannot be joined to a batch: RuntimeError"):
        collect_images(Boxes((8, 9)), "validation")


@pytest.mark.parametrize(
    ("entry", "labelled"),
    [
        (lambda number: {"image": BLACK, "label": number, "boxes": torch.zeros(number, 4)}, True),
        (lambda number: {"image": BLACK, "boxes": torch.zeros(number, 4)}, False),
        (lambda number: (BLACK, number, torch.zeros(number)), True),
        (lambda number: (BLACK, number, {f"key{number}": 1}), True),
        (lambda number: (BLACK, {f"key{number}": 1}), False),
    ],
)
def test_only_what_cannot_be_joined_is_left_out(entry: Callable[[int], Any], labelled: bool) -> None:
    found, has_labels = collect_images(Entries([entry(0), entry(1)]), "validation")
    assert found.images.shape == (2, 3, 8, 8)
    assert has_labels == labelled
    assert found.labels.tolist() == [0, labelled]


def test_memory_that_runs_out_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("experiments.library.images.default_collate", full)
    with pytest.raises(MemoryError):
        collect_images(Entries([BLACK]), "validation")


@pytest.mark.parametrize("acts", ["ratios", "weights"])
def test_an_agent_of_stable_baselines3_trains_on_the_environment_and_its_best_network_is_pruned(
    acts: Any,
) -> None:
    task = amc.CompressionTask(network(), images(32), (images(), LABELS), macs_ratio=0.5)
    env = task.env(acts)
    TD3("MlpPolicy", env, learning_starts=4, seed=0, device="cpu").learn(4 * env.episode_length)
    result = task.result()
    assert result.report["search"]["evaluations"] >= 1
    assert result.strategy.macs_ratio <= 0.5
    whole = task.graph.dense_widths
    with pytest.raises(amc.SettingError, match=r"over macs_ratio=0\.5"):
        task.prune(whole)


def with_nan() -> torch.Tensor:
    found = images()
    found[3, 1, 2, 2] = torch.nan
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no budget; expected at least one of macs_ratio, params_ratio, size_ratio, latency_ratio"),
        (
            {"macs_ratio": 0.5, "params_ratio": 0.01},
            "params_ratio is 0.01.* of the macs and .* params",
        ),
        ({"macs_ratio": 2.0}, "macs_ratio is 2"),
        ({"macs_ratio": "half"}, "macs_ratio is 'half'; expected a number"),
        ({"macs_ratio": 0.5, "seed": -1}, "seed is -1; expected a whole number"),
        ({"macs_ratio": 0.5, "device": "gpu"}, "device=gpu cannot be used"),
        ({"macs_ratio": 0.01}, "smallest allowed network"),
        (
            {"size_ratio": 0.2, "quantize": "weight_only"},
            r"^quantize is 'weight_only'; expected amc\.QuantizeSettings\(\.\.\.\), or None$",
        ),
        ({"macs_ratio": 0.5, "pruning": "x"}, r"^pruning is 'x'; expected amc\.PruneSettings"),
        ({"macs_ratio": 0.5, "settings": {}}, r"^settings is \{\}; expected amc\.CandidateSettings"),
        ({"latency_ratio": 0.5, "profile": "x"}, r"^profile is 'x'; expected amc\.ProfileSettings"),
        ({"macs_ratio": 0.5, "quantize": amc.QuantizeSettings()}, "^got quantize without size_ratio: "),
        ({"macs_ratio": 0.5, "profile": amc.ProfileSettings()}, "^got profile without latency_ratio: "),
        ({"macs_ratio": 0.5, "runtime": "onnxruntme"}, "^got runtime without latency_ratio: "),
        ({"macs_ratio": 0.5, "episodes": 2.0}, r"^episodes is 2\.0; expected a whole number$"),
        ({"macs_ratio": 0.5, "round_to": 2.5}, r"^round_to is 2\.5; expected a whole number$"),
        ({"macs_ratio": 0.5, "agent": "dpg"}, "unknown agent 'dpg'.*did you mean 'ddpg'"),
        ({"macs_ratio": 0.5, "exclude": ["head"]}, "'head'"),
        ({"macs_ratio": 0.5, "agent": "global_taylor", "episodes": None}, "global_taylor needs .* labels"),
        (
            {"macs_ratio": 0.5, "settings": amc.CandidateSettings(order="taylor")},
            "order=taylor needs calibration images with labels",
        ),
        ({"macs_ratio": 0.5, "reward": "acuracy"}, "did you mean 'accuracy'"),
        ({"macs_ratio": 0.5, "reward": "accuracy", "score": float}, "expected one of them"),
        ({"latency_ratio": 0.5, "runtime": "onnx"}, "did you mean 'onnxruntime'"),
        ({"macs_ratio": 0.5, "calibration": 3}, "calibration is a int"),
        ({"macs_ratio": 0.5, "validation": images()[0]}, "images of shape"),
        ({"macs_ratio": 0.5, "validation": []}, "validation holds no images"),
        ({"macs_ratio": 0.5, "validation": images(1)}, "validation holds one image; expected 2 or more"),
        ({"macs_ratio": 0.5, "validation": [()]}, "validation yields a tuple; expected batches"),
        ({"macs_ratio": 0.5, "validation": (images(), LABELS[:9])}, "yields 9 labels for 64 images"),
        ({"macs_ratio": 0.5, "validation": (images(9), LABELS)}, "yields 64 labels for 9 images"),
        ({"macs_ratio": 0.5, "validation": (images(), LABELS.float())}, "labels of float32; expected whole"),
        ({"macs_ratio": 0.5, "validation": (images().byte(), LABELS)}, "images of uint8; expected floats"),
        ({"macs_ratio": 0.5, "calibration": images().byte()}, "calibration yields images of uint8"),
        ({"macs_ratio": 0.5, "validation": (images(), images())}, "a tuple of two batches of images"),
        (
            {"macs_ratio": 0.5, "validation": [images(), images()[..., :4]]},
            r"shapes \(3, 8, 4\) and \(3, 8, 8\)",
        ),
        ({"macs_ratio": 0.5, "calibration": images()[:, :1]}, "calibration has images of 1 channels"),
        (
            {"macs_ratio": 0.5, "calibration": with_nan()},
            "calibration: 1 of 64 .* NaN .* at index 3; expected",
        ),
        ({"macs_ratio": 0.5, "validation": with_nan()}, "validation: 1 of 64 images hold NaN or infinity"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_clear_line(options: dict, message: str) -> None:
    given = {"calibration": images(16), "validation": (images(), LABELS), "episodes": 1, **options}
    with pytest.raises(amc.AmcError, match=message) as caught:
        amc.compress(network(), **given)
    assert "\n" not in str(caught.value)


def test_two_batches_in_a_list_are_all_images() -> None:
    found, labelled = collect_images([images(), images(32)], "calibration")
    assert (len(found), labelled) == (96, False)


def test_labels_in_a_column_are_labels() -> None:
    found, labelled = collect_images((images(), LABELS[:, None]), "validation")
    assert labelled
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("targets", [torch.zeros(64, 5, 4), [{"boxes": torch.zeros(2, 4)}] * 64])
def test_targets_that_are_no_labels_are_left_out_with_a_note(
    targets: object, caplog: pytest.LogCaptureFixture
) -> None:
    note_once.cache_clear()
    found, labelled = collect_images([(images(), targets)], "validation")
    assert (len(found), labelled) == (64, False)
    assert "validation: the targets" in caplog.text


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4,), "widths has 1 numbers; expected 3, one for each group"),
        ((4, 4, 4, 4), "widths has 4 numbers"),
        ((4, 0, 4), "width of group 3 is 0; expected 1 to 16 channels"),
        ((-4, 4, 4), "width of group 0 is -4"),
        ((99, 4, 4), "width of group 0 is 99; expected 1 to 8"),
        ((4.0, 4, 4), r"widths is .4\.0, 4, 4.; expected 3 whole numbers"),
        (torch.ones(3, 2), r"widths is tensor.*; expected 3 whole numbers"),
        (4, "widths is 4; expected 3 whole"),
    ],
)
def test_impossible_widths_are_one_clear_line(widths: Any, message: str) -> None:
    task = amc.CompressionTask(network(), images(16), images(), macs_ratio=0.5, progress=False)
    for method in (task.evaluate, task.prune, task.macs):
        with pytest.raises(amc.SettingError, match=message) as caught:
            method(widths)
        assert "\n" not in str(caught.value)
    assert task.macs(torch.tensor([4, 4, 4])) == task.macs((4, 4, 4))


def test_the_public_page_lists_and_documents_every_name() -> None:
    tree = ast.parse(Path(amc.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(amc.__all__) == typed == set(amc._HOME)
    assert set(dir(amc)) == set(amc.__all__)
    assert all(getattr(amc, name).__doc__ for name in amc.__all__)
    assert amc.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        amc.nothing  # noqa: B018


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_to_its_last_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((Path(examples.__file__).parent / "own_network.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, "cell", "exec"), names)
    assert names["result"].strategy.macs_ratio <= 0.5
    assert names["accuracy"](names["pruned"]) > 80
    assert names["exported"].path.exists()
    assert "as fast in onnxruntime" in capsys.readouterr().out


def test_the_example_with_an_agent_of_ones_own_runs() -> None:
    from experiments.examples import own_agent

    result = own_agent.main()
    assert result.strategy.macs_ratio <= 0.5
    assert result.model(own_agent.make_images(2)[0]).shape == (2, own_agent.CLASSES)


def test_the_example_with_several_teachers_gives_their_mean(tmp_path, monkeypatch) -> None:
    from experiments.examples.ensemble_teacher import teach

    torch.manual_seed(0)
    networks = {"resnet20": resnet20().eval(), "plain20": plain20().eval()}
    for name, each in networks.items():
        save_safetensors(each.state_dict(), tmp_path / f"{name}.safetensors")
    given = torch.randn(4, 3, 32, 32)
    monkeypatch.setenv("TEACHERS", ",".join(f"{name}={tmp_path}/{name}.safetensors" for name in networks))
    with torch.no_grad():
        found = teach(given)
        wanted = torch.stack([each(given) for each in networks.values()]).mean(0)
    torch.testing.assert_close(found, wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)  # bfloat16
    monkeypatch.setenv("TEACHERS", "resnet20")
    with pytest.raises(AmcError, match="TEACHERS=resnet20: expected NAME=CHECKPOINT"):
        teach(given)
