import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, VisionTransformer
from torchvision.ops import FeaturePyramidNetwork

from amc.errors import FileError
from amc.models import resnet20
from amc.models.checkpoint import load_into, load_matching
from amc.models.state_files import load_state_dict, save_safetensors
from amc.notes import note_once
from tests.amc.models.helpers import one_line, same

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


# --- names


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda one, two: {"state_dict": one, "state_dict_ema": two}, ["'state_dict'", "'state_dict_ema'"]),
        (lambda one, two: {"model": {"net": one}, "ema": two}, ["'model.net'", "'ema'"]),
        (lambda one, two: {"model": one, "model_ema": prefixed("module.", two)}, ["'model'", "'model_ema'"]),
        (
            lambda one, two: prefixed("model.", one) | prefixed("ema_model.", two),
            ["'model.'", "'ema_model.'"],
        ),
        (
            lambda one, two: prefixed("teacher.", two) | prefixed("student.", one),
            ["'student.'", "'teacher.'"],
        ),
        (lambda one, _: {"model": one, "state_dict": one}, None),
        (lambda one, _: prefixed("model.", one) | prefixed("net.", one), None),
        (lambda one, two: {"model": one, "optimizer": two}, None),
    ],
)
def test_of_two_sets_of_weights_it_is_told_which_is_read(wrap, told, tmp_path, caplog):
    note_once.cache_clear()
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / "weights.pth"
    torch.save(wrap(one.state_dict(), two.state_dict()), path)
    target = nn.Linear(3, 2)
    load_into(target, load_state_dict(path), path)
    assert same(target.state_dict(), one.state_dict())
    if told is None:
        assert caplog.messages == []
        return
    (line,) = caplog.messages
    assert line.index(told[0]) < line.index(" are used; ") < line.index(told[1])


class Wrapper(nn.Module):
    """Holds a network under an attribute of any name."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.add_module(attribute, nn.Linear(3, 2))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "model.net."]
)
def test_prefixes_of_wrappers_are_removed_where_that_makes_names_fit(prefix: str) -> None:
    source, target = resnet20(), resnet20()
    extra = {"n_averaged": torch.tensor(3), "metric.total": torch.ones(1)}
    load_into(target, prefixed(prefix, source.state_dict()) | extra, "w.ckpt")
    assert same(target.state_dict(), source.state_dict())
    start = resnet20(7)
    assert load_matching(start, prefixed(prefix, source.state_dict()), "w.ckpt") == [
        "linear.weight",
        "linear.bias",
    ]


@pytest.mark.parametrize("attribute", ["module", "model", "backbone", "_orig_mod", "detector"])
def test_a_network_with_an_attribute_like_a_prefix_loads_its_own_weights(
    attribute: str, tmp_path: Path
) -> None:
    source, path = Wrapper(attribute), tmp_path / "dense.safetensors"
    save_safetensors(source.state_dict(), path)
    wrapped = prefixed("module.", source.state_dict())
    inner = {key.removeprefix(f"{attribute}."): value for key, value in source.state_dict().items()}
    for state in (load_state_dict(path), wrapped, inner):
        target = Wrapper(attribute)
        load_into(target, state, path)
        assert same(target.state_dict(), source.state_dict())


def test_a_wrapped_network_loads_bare_weights() -> None:
    source, target = resnet20(), nn.DataParallel(resnet20())
    load_into(target, source.state_dict(), "w.pth")
    assert same(target.module.state_dict(), source.state_dict())


def test_auxiliary_heads_that_a_network_does_not_have_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    source, target = resnet20(), resnet20()
    heads = prefixed("aux1.fc.", STATE) | prefixed("AuxLogits.conv.", STATE)
    load_into(target, prefixed("module.", source.state_dict() | heads), "googlenet.pth")
    assert same(target.state_dict(), source.state_dict())
    assert caplog.messages == [
        "googlenet.pth: left out AuxLogits, aux1, auxiliary heads that CifarResNet lacks"
    ]


def test_an_auxiliary_head_that_a_network_has_is_checked() -> None:
    state = prefixed("aux1.", nn.Linear(4, 2).state_dict())
    one_line(lambda: load_into(Wrapper("aux1"), state, "w.pth"), "aux1.weight has shape (2, 4)")


def test_prefixed_weights_of_another_network_are_refused() -> None:
    state = prefixed("module.", resnet20(100).state_dict())
    one_line(lambda: load_into(resnet20(), state, "w.th"), "linear.weight has shape (100, 64)", "num_classes")
    other = prefixed("module.", STATE)
    one_line(lambda: load_into(resnet20(), other, "w.th"), "w.th", "is missing", "2 unexpected")


def test_prefix_inside_a_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_safetensors({"a.module.weight": torch.ones(1)}, path)
    assert list(load_state_dict(path)) == ["a.module.weight"]


# --- loading into a network


def test_load_into_takes_a_checkpoint_without_buffers_of_ours() -> None:
    source, target = resnet20(), resnet20()
    state = {
        k: v for k, v in source.state_dict().items() if not k.endswith(("source", "num_batches_tracked"))
    }
    load_into(target, state, "wild.th")
    assert same(target.state_dict(), source.state_dict())


def test_load_into_refuses_missing() -> None:
    state = resnet20().state_dict()
    del state["conv1.weight"], state["layer1.0.bn1.bias"]
    one_line(lambda: load_into(resnet20(), state, "w.th"), "w.th", "conv1.weight is missing", "2 missing")


def test_load_into_refuses_unexpected() -> None:
    state = resnet20().state_dict() | {"extra": torch.ones(1)}
    one_line(lambda: load_into(resnet20(), state, "w.th"), "extra is unexpected", "0 missing, 1 unexpected")


def test_load_into_refuses_other_classes() -> None:
    one_line(
        lambda: load_into(resnet20(10), resnet20(100).state_dict(), "w.th"),
        "linear.weight has shape (100, 64), expected (10, 64)",
        "2 of another shape",
        "another num_classes",
    )


def test_load_into_refuses_other_width() -> None:
    state = resnet20().state_dict()
    state["conv1.weight"] = state["conv1.weight"][:8]
    one_line(
        lambda: load_into(resnet20(), state, "w.th"),
        "conv1.weight has shape (8, 3, 3, 3), expected (16, 3, 3, 3)",
        "another architecture, width or pruning",
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_load_into_refuses_nonfinite_and_keeps_the_model(bad: float) -> None:
    model, state = resnet20(), resnet20().state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state["layer2.1.bn2.running_var"][3] = bad
    one_line(lambda: load_into(model, state, "w.th"), "w.th", "layer2.1.bn2.running_var", "NaN or Inf")
    assert same(model.state_dict(), before)


def test_load_into_refuses_a_shortcut_of_another_width() -> None:
    state = resnet20().state_dict()
    state["layer2.0.shortcut.source"] = state["layer2.0.shortcut.source"][:8]
    one_line(lambda: load_into(resnet20(), state, "w.th"), "shortcut.source has shape (8,), expected (32,)")


def test_load_into_refuses_channels_that_do_not_exist() -> None:
    state = resnet20().state_dict()
    state["layer2.0.shortcut.source"][0] = 16
    one_line(lambda: load_into(resnet20(), state, "w.th"), "layer2.0.shortcut.source", "expected -1 to 15")


# --- weights to start from


def test_a_start_fills_all_but_a_classifier_of_other_classes() -> None:
    source, target = resnet20(100), resnet20(10)
    classifier = target.linear.weight.detach().clone()
    new = load_matching(target, source.state_dict() | {"extra": torch.ones(1)}, "w.th")
    assert new == ["linear.weight", "linear.bias"]
    assert torch.equal(target.linear.weight, classifier)
    assert torch.equal(target.layer3[2].conv2.weight, source.layer3[2].conv2.weight)


def test_a_start_from_another_architecture_is_refused() -> None:
    one_line(lambda: load_matching(resnet20(), STATE, "w.th"), "w.th", "only 0 of the", "architecture")


def test_a_start_that_is_not_finite_is_refused() -> None:
    state = resnet20().state_dict()
    state["conv1.weight"][0] = math.nan
    one_line(lambda: load_matching(resnet20(), state, "w.th"), "conv1.weight holds NaN or Inf")


class Masked(nn.Module):
    """Holds a mask of attention, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))


def test_infinities_of_the_networks_own_mask_are_read(tmp_path: Path) -> None:
    source, path = Masked(), tmp_path / "dense.safetensors"
    save_safetensors(prefixed("module.", source.state_dict()), path)
    target = Masked()
    load_into(target, load_state_dict(path), path)
    assert same(target.state_dict(), source.state_dict())
    for key, value in (("mask", math.nan), ("mask", math.inf), ("norm.running_var", math.inf)):
        state = source.state_dict()
        state[key] = torch.full_like(state[key], value)
        one_line(lambda state=state: load_into(Masked(), state, "w.th"), f"{key} holds NaN or Inf")


class Versioned(nn.Module):
    """Refuses weights of an unknown version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_modules_that_check_a_version_are_loaded(tmp_path: Path) -> None:
    source, target = nn.Sequential(Body(3)), nn.Sequential(Body(3))
    save_safetensors(source.state_dict(), tmp_path / "w.safetensors")
    load_into(target, load_state_dict(tmp_path / "w.safetensors"), "w.safetensors")
    assert same(target.state_dict(), source.state_dict())


class Body(Versioned, nn.Sequential):
    """A body that checks its version, and a classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def test_a_part_of_the_weights_of_modules_that_check_a_version_is_loaded_or_refused() -> None:
    source, target = Body(5).state_dict(), Body(2)
    assert load_matching(target, dict(source), "w.pth") == ["3.weight", "3.bias"]
    assert torch.equal(target[0].weight, source["0.weight"])
    assert load_matching(Body(5), dict(source), "w.pth") == []
    one_line(lambda: load_into(Body(2), dict(source), "w.pth"), "3.weight has shape (5, 4)", "num_classes")
    one_line(lambda: load_into(Body(5), STATE, "w.pth"), "0.weight is missing", "9 missing, 2 unexpected")


def transformer(classes: int = 3) -> VisionTransformer:
    sizes = {"image_size": 16, "patch_size": 8, "hidden_dim": 8, "mlp_dim": 12}
    return VisionTransformer(num_layers=1, num_heads=2, num_classes=classes, **sizes)


def pyramid() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), FeaturePyramidNetwork([4, 8], 4))


def densenet(classes: int = 3) -> DenseNet:
    return DenseNet(4, (2, 1), 8, num_classes=classes)


@pytest.mark.parametrize(
    ("make", "pattern", "old"),
    [
        (transformer, r"mlp\.0\.", "mlp.linear_1."),
        (pyramid, r"(blocks\.\d)\.0", r"\1"),
        (densenet, r"(denselayer\d\.\w+)([12]\.)", r"\1.\2"),
    ],
)
def test_names_of_earlier_versions_of_torchvision_are_read(
    make: Callable[[], nn.Module], pattern: str, old: str
) -> None:
    source = make().state_dict()
    state = {re.sub(pattern, old, key).replace("mlp.3.", "mlp.linear_2."): own for key, own in source.items()}
    assert state.keys() != source.keys()
    for given in (state, prefixed("module.", state)):
        target = make()
        load_into(target, given, "old.pth")
        assert same(target.state_dict(), source)


def test_a_start_from_old_names_leaves_nothing_but_the_classifier_at_random() -> None:
    source, target = transformer(5).state_dict(), transformer(3)
    old = {key.replace("mlp.0.", "mlp.linear_1."): own for key, own in source.items()}
    assert load_matching(target, old, "old.pth") == ["heads.head.weight", "heads.head.bias"]
    first = "encoder.layers.encoder_layer_0.mlp.0.weight"
    assert torch.equal(target.state_dict()[first], source[first])
    one_line(lambda: load_into(transformer(3), old, "old.pth"), "heads.head.weight has shape", "num_classes")


@pytest.mark.parametrize("load", [load_into, load_matching])
def test_complex_numbers_are_refused_without_a_warning_of_torch(load, recwarn):
    network = nn.Linear(2, 3)
    state = {name: tensor.to(torch.complex64) for name, tensor in network.state_dict().items()}
    with pytest.raises(FileError, match=r"odd\.pth: weight holds complex numbers, expected real ones"):
        load(network, state, "odd.pth")
    assert not recwarn.list
