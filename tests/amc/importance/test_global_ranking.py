"""Importances of whole networks by torch-pruning: comparable between groups, and nothing else is touched."""

import pytest
import torch
from torch import nn

from amc.data import LabelledImages
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.importance.global_ranking import global_scores
from amc.models import ModelSpec, build


def flattened():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    ).eval()


def images(count=40):
    generator = torch.Generator().manual_seed(0)
    return LabelledImages(
        torch.randn(count, 3, 4, 4, generator=generator), torch.randint(2, (count,), generator=generator)
    )


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_a_channel_without_weights_scores_lowest_in_the_whole_network(importance):
    model = flattened()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0
        model[3].weight[:, 2 * 16 : 3 * 16] = 0
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = global_scores(model, graph, importance, images())
    assert {name: len(own) for name, own in scores.items()} == {"0": 4, "3": 6}
    assert min((score, name, index) for name, own in scores.items() for index, score in enumerate(own)) == (
        0,
        "0",
        2,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_l1_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[5.0, -1.0]]))
    image = nn.Sequential(nn.Flatten(), model)
    graph = trace(image, torch.zeros(1, 2, 1, 1))
    (scores,) = global_scores(image, graph, "l1", images()).values()
    # Channel 0: rows |1| + |-2| and column |5| average to 4; channel 1: (7 + 1) / 2; the mean is 4.
    assert scores == pytest.approx((1.0, 1.0))


def test_coupled_and_depthwise_channels_have_scores():
    spec = ModelSpec("mobilenet_v2", 10, (3, 32, 32))
    model = build(spec, trust_dotted_path=False)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    scores = global_scores(model, graph, "l1", images())
    assert list(scores) == list(graph.group_names)
    assert [len(own) for own in scores.values()] == list(graph.dense_widths)


def test_parts_that_run_without_gradients_are_ranked_as_with_them():
    class Frozen(nn.Sequential):
        def forward(self, x):
            for index, layer in enumerate(self):
                with torch.set_grad_enabled(index > 2):
                    x = layer(x)
            return x

    model, frozen = flattened(), Frozen(*flattened()).eval()
    found, expected = (
        global_scores(each, trace(each, torch.zeros(1, 3, 4, 4)), "taylor", images())
        for each in (frozen, model)
    )
    assert found == expected


def test_taylor_needs_logits():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 1)
            self.heads = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)])

        def forward(self, x):
            x = self.body(x).relu()
            return [head(x) for head in self.heads]

    model = Two().eval()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    assert set(global_scores(model, graph, "l1", images())) == {"body"}
    with pytest.raises(AmcError, match="taylor needs a network that returns logits"):
        global_scores(model, graph, "taylor", images())


def test_taylor_refuses_labels_that_the_network_does_not_have():
    model, given = flattened(), images()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    with pytest.raises(AmcError, match=r"labels run from 1 to 2, but the network has 2 outputs"):
        global_scores(model, graph, "taylor", LabelledImages(given.images, given.labels + 1))
