import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from amc.scoring.run import copied, evaluating


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 1.0, self.training)


@pytest.fixture
def model():
    """A network with a part that has a graph for each mode: it drops everything in training."""
    return nn.Sequential(create_feature_extractor(nn.Sequential(Dropping()), {"0": "x"}), nn.Identity())


def dropped(model):
    return not model(torch.ones(2, 3))["x"].any()


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_has_the_modes_of_its_original(model, training):
    model.train(training)[1].train(not training)
    twin = copied(model)
    assert [module.training for module in twin] == [training, not training]
    assert dropped(twin) is dropped(model) is training


def test_a_network_trains_on_after_an_evaluation(model):
    model[1].eval()
    with evaluating(model):
        assert not dropped(model)
    assert dropped(model)
    assert [module.training for module in model] == [True, False]
