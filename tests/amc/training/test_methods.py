"""What a training changes: norms alone, or adapters that are merged."""

from dataclasses import replace

import pytest
import torch

from amc.errors import UnavailableError
from amc.scoring.run import logits
from amc.third_party import missing
from amc.training.loop import train
from amc.training.methods import adapted
from amc.training.settings import TrainSettings
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
