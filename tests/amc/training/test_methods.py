"""What a training changes: norms alone, or adapters that are merged."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from amc.errors import AmcError, UnavailableError
from amc.scoring.run import logits
from amc.third_party import missing
from amc.training.learner import parameter_groups
from amc.training.loop import train
from amc.training.methods import adapted
from amc.training.settings import TrainSettings
from amc.training.teaching.hints import Hints
from tests.amc.training.test_training import FAKE, Killed, network, same_state, stop_after

SHORT = TrainSettings(epochs=2, lr=0.1, precision="fp32")


def test_norms_biases_and_the_classifier_are_all_that_changes():
    start, trained = network(), network()
    train(trained, FAKE, replace(SHORT, method="norms"), seed=0)
    changed = {
        name for name, each in start.named_parameters() if not torch.equal(each, trained.state_dict()[name])
    }
    assert changed == {"1.weight", "1.bias", "5.weight", "5.bias", "10.weight", "10.bias"}
    assert all(each.requires_grad for each in trained.parameters())


def test_the_classifier_is_trained_behind_a_mask_as_well():
    class Masked(torch.nn.Module):
        def forward(self, weight):
            return weight * 1.0

    start, trained = network(), network()
    torch.nn.utils.parametrize.register_parametrization(trained[10], "weight", Masked())
    train(trained, FAKE, replace(SHORT, method="norms"), seed=0)
    assert not torch.equal(trained[10].weight, start[10].weight)
    assert torch.equal(trained[4].weight, start[4].weight)


class HeadFirst(nn.Module):
    """Defines its classifier before its body, which has a norm of three axes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm([4, 4, 4])

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).flatten(1))


def test_the_classifier_is_what_runs_last_and_norms_are_known_by_their_type():
    model = HeadFirst()
    with adapted(model, replace(SHORT, method="norms"), FAKE.calibration.images, 0):
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"head.weight", "head.bias", "conv.bias", "norm.weight", "norm.bias"}
    decayed, kept = parameter_groups(model, 0.1)
    assert {id(each) for each in decayed["params"]} == {id(model.head.weight), id(model.conv.weight)}
    assert len(kept["params"]) == 4


@pytest.mark.slow
@pytest.mark.skipif(missing("peft") is not None, reason="needs peft")
def test_adapters_stand_beside_layers_that_they_can_follow():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        nn.Conv2d(4, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    model[9].weight = model[8].weight
    frozen = [model[1].weight, model[1].bias, model[5].weight]
    for each in frozen:
        each.requires_grad_(False)
    before = [each.clone() for each in frozen]
    with adapted(model, replace(SHORT, method="lora"), FAKE.calibration.images, 0) as method:
        names = {
            name.partition(".lora_")[0] for name, _ in method.network.named_parameters() if "lora_" in name
        }
        trained = {name for name, each in method.network.named_parameters() if each.requires_grad}
    assert names == {"0", "10"}
    assert not any(name.startswith("1.") for name in trained)
    train(model, FAKE, replace(SHORT, epochs=1, method="lora"), seed=0)
    assert all(torch.equal(own, old) for own, old in zip(frozen, before, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(missing("peft") is not None, reason="needs peft")
@pytest.mark.parametrize("width", [5, 8])  # with the teacher's 8, any axis would fit
def test_hints_compare_channels_of_convolutions_with_adapters(width):
    teacher, images = network(seed=1).eval(), FAKE.calibration.images
    with adapted(network(width=width), replace(SHORT, method="lora"), images, 0) as method:
        hints = Hints(method.network, teacher, ["4"], images, fixed=True)
    plain = Hints(network(width=width), teacher, ["4"], images, fixed=True)
    torch.testing.assert_close(hints.maps[0], plain.maps[0])  # new adapters change nothing
    assert hints.loss().item() == pytest.approx(plain.loss().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(missing("peft") is not None, reason="needs peft")
def test_adapters_that_the_network_goes_around_are_refused_before_the_training():
    class Around(HeadFirst):
        def forward(self, images):
            weight = self.head.weight
            return nn.functional.linear(self.norm(self.conv(images)).flatten(1), weight, self.head.bias)

    with pytest.raises(
        AmcError, match=r"method=lora: merging adapters changes outputs by .* use method=norms"
    ):
        train(
            Around(), FAKE, replace(SHORT, method="lora"), seed=0, on_epoch=lambda _: pytest.fail("trained")
        )


@pytest.mark.slow
@pytest.mark.skipif(missing("peft") is not None, reason="needs peft")
def test_adapters_are_merged_into_the_same_network(tmp_path):
    settings = replace(SHORT, method="lora", lora_rank=2)
    start, model = network(), network()
    found = train(model, FAKE, settings, seed=0)
    assert found.model is model
    assert found.merge_difference < 1e-5
    assert model.state_dict().keys() == start.state_dict().keys()
    assert not torch.equal(model[0].weight, start[0].weight)
    assert torch.linalg.matrix_rank((model[4].weight - start[4].weight).flatten(1), atol=1e-5) <= 2
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(network(), FAKE, settings, seed=0, checkpoint=file, on_epoch=stop_after(1))
    assert same_state(train(network(), FAKE, settings, seed=0, checkpoint=file).model, model)


@pytest.mark.skipif(missing("peft") is not None, reason="needs peft")
def test_merged_outputs_are_those_of_the_adapters():
    model, images = network().eval(), FAKE.calibration.images
    with adapted(model, replace(SHORT, method="lora"), images, 0) as method:
        for name, each in method.network.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(each, std=0.1)
        expected = logits(method.network, images, 64)
        assert method.merge() < 1e-5
    torch.testing.assert_close(logits(model, images, 64), expected, atol=1e-4, rtol=1e-4)


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr("amc.training.methods.missing", lambda name: f"not installed: {name}")
    with pytest.raises(UnavailableError, match=r"not installed: peft; pip install amc-search\[lora\]"):
        train(network(), FAKE, replace(SHORT, method="lora"), seed=0)
