"""The dense network of a folder: its stored weights, or the pretrained ones that are asked for."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.errors import FileError
from amc.models.registry import ModelSpec
from amc.models.state_files import load_state_dict, save_safetensors
from experiments.run.folder import RunFolder
from experiments.run.problem.problem import Problem
from tests.experiments.helpers import FAKE, composed


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a library with pretrained weights: each name has its own."""

    def build(spec: ModelSpec, *, pretrained: bool = False, **_: Any) -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
        )
        if pretrained:
            nn.init.constant_(model[4].bias, float(zlib.crc32(spec.name.encode()) % 1000))
        return model

    monkeypatch.setattr("experiments.run.problem.problem.build", build)


def opened(folder: Path, name: str, *, pretrained: bool = True) -> Problem:
    config = composed(*FAKE, f"model='{name}'", f"model.pretrained={pretrained}")
    return Problem(config, RunFolder.made(folder))


@pytest.mark.parametrize("classes", [4, 7])
def test_a_start_with_all_weights_may_know_the_held_out_images(classes: int, tmp_path: Path) -> None:
    """One of other classes has a new classifier; what a training has recorded counts for later calls."""
    whole = classes == 4
    start, folder = tmp_path / "start.safetensors", RunFolder.made(tmp_path / "run")
    state = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "4.weight": (classes, 4), "4.bias": (classes,)}
    save_safetensors({name: torch.zeros(shape) for name, shape in state.items()}, start)
    given = (*FAKE, "model=mine", "stages=[train,search]", f"model.start={start}")
    assert Problem(composed(*given), folder).validates_honestly is not whole
    later = composed(*FAKE, "model=mine", "stages=[finetune]")
    assert Problem(later, folder).validates_honestly
    folder.record("train", {"starts_trained": whole})
    assert Problem(later, folder).validates_honestly is not whole


def bias(problem: Problem) -> float:
    """Return what tells the weights apart, and check that they are those of the folder."""
    problem.keep_dense()
    found = problem.dense[4].bias
    assert torch.equal(load_state_dict(problem.folder.dense)["4.bias"], found)
    return float(found[0].detach())


@pytest.mark.parametrize("before", ["timm:x.a2", None])
def test_weights_of_another_model_do_not_stand_in_for_pretrained_ones(
    before: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if before is None:  # a training
        first = opened(tmp_path, "timm:x.a1", pretrained=False)
        first.weights.save(first.fresh_model())
    else:
        opened(tmp_path, before).keep_dense()
    expected = bias(opened(tmp_path / "other", "timm:x.a1"))
    assert bias(opened(tmp_path, "timm:x.a1")) == expected
    (line,) = caplog.messages
    assert "the pretrained weights of timm:x.a1 take its place" in line


def test_weights_of_the_same_model_and_of_earlier_releases_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for about in (True, False):
        stored = opened(tmp_path / f"{about}", "timm:x.a1")
        model = stored.fresh_model()
        nn.init.constant_(model[4].bias, 0.5)
        if about:
            stored.weights.save(model)
        else:
            save_safetensors(model.state_dict(), stored.folder.dense)
        assert bias(opened(tmp_path / f"{about}", "timm:x.a1")) == 0.5
    assert caplog.messages == []


def test_a_trained_network_is_read_again(tmp_path: Path) -> None:
    trained = opened(tmp_path, "timm:x.a1", pretrained=False)
    trained.weights.save(trained.fresh_model())
    assert torch.equal(opened(tmp_path, "timm:x.a1", pretrained=False).dense[4].bias, trained.dense[4].bias)


def test_evaluations_follow_the_arguments_of_a_model_and_the_name_of_ones_own() -> None:
    def origin(*overrides: str) -> tuple[str, ...]:
        return Problem(composed(*FAKE, *overrides), RunFolder(Path())).origin

    weights = ("model.checkpoint=w.pth", "model.pretrained=false")
    assert origin("model=resnet20") == origin("model=resnet20", *weights) == ()
    own = [
        "model='my.a'",
        "model='my.b'",
        "model='my.a' +model.kwargs.scale=1",
        "model='my.a' +model.kwargs.scale=3",
    ]
    assert len({origin(*each.split(), *weights) for each in own}) == 4


def test_weights_of_another_network_of_the_same_shapes_are_refused(tmp_path: Path) -> None:
    trained = opened(tmp_path, "timm:x.a1", pretrained=False)
    trained.weights.save(trained.fresh_model())
    with pytest.raises(FileError, match=r"of model timm:x\.a1, but model timm:x\.a2 is asked for: run"):
        opened(tmp_path, "timm:x.a2", pretrained=False).dense  # noqa: B018
    config = composed(*FAKE, "model='timm:x.a1'", "model.pretrained=false", "+model.kwargs.scale=3")
    with pytest.raises(FileError, match=r"but model timm:x\.a1 {'scale': 3} is asked for"):
        Problem(config, RunFolder.made(tmp_path)).dense  # noqa: B018
    save_safetensors(trained.dense.state_dict(), trained.folder.dense, {"model": "of another program"})
    assert opened(tmp_path, "timm:x.a2", pretrained=False).dense is not None
