"""The library's front door: one call, a task under its budgets, and the results of the command."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import amc
from amc import data as datasets
from amc.latency.prediction import build
from amc.latency.prediction.profile import NetworkTimes
from amc.latency.registry import BACKENDS
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict
from tests.experiments.helpers import FAKE, TINY, done, read_lines, workspace
from tests.experiments.library.helpers import LABELS, images, network
from tests.fakes import Spinning, registered


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
