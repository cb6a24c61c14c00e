"""A candidate that is refitted in sequence has the same bits whatever was evaluated before it."""

import itertools

import pytest
import torch

from amc.candidate.evaluator import channel_evaluator
from amc.candidate.settings import CandidateSettings
from amc.graph.trace import trace
from amc.models import resnet20
from amc.workers.shared_memory import pack, unpack
from tests.amc.refit.test_forwards import ChunkLoop, Recurrent
from tests.networks import CLASSES, SHAPE, Chain, Residual, Separable, randomised
from tests.params import slow


class InPlace(Residual):
    """Activations and sums that write into their inputs."""

    def features(self, x):
        x = self.stem(x).relu_()
        x += self.same(x)
        return self.down(x.relu_()).add_(self.shortcut(x)).relu_()


NETWORKS = [
    Residual,
    Recurrent,
    InPlace,
    *map(slow, (Chain, Separable, ChunkLoop, lambda: resnet20(CLASSES))),
]


def evaluator_of(network, data, **settings):
    graph = trace(network, torch.zeros(1, *SHAPE))
    settings = CandidateSettings(sequential_images=40, **settings)
    return channel_evaluator(network, graph, data.calibration, data.search_val, settings)


def bits(evaluator, widths):
    with evaluator.builder.network(widths) as network:
        tensors = [tensor.clone() for tensor in network.state_dict().values()]
    return [*tensors, evaluator.outputs(widths)]


def same(one, other):
    return len(one) == len(other) and all(itertools.starmap(torch.equal, zip(one, other, strict=True)))


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("reestimate", [True, slow(False)])
def test_the_bits_of_a_candidate_do_not_depend_on_those_before_it(make, reestimate, data):
    network = randomised(make(), seed=1).eval()
    evaluator = evaluator_of(network, data, reestimate_norms=reestimate)
    dense = evaluator.builder.dense_widths
    half = tuple(max(1, width // 2) for width in dense)
    late = (*half[:-1], max(1, dense[-1] // 3))  # shares all but the last group with `half`
    early = (dense[0], *half[1:])
    alone = {
        widths: bits(evaluator_of(network, data, reestimate_norms=reestimate), widths)
        for widths in (half, late, early)
    }
    for widths in (half, late, half, early, dense, early, late):
        found = bits(evaluator, widths)
        if widths != dense:
            assert same(found, alone[widths])
    assert not same(alone[half], alone[late])


def test_a_copy_in_another_process_gives_the_same_bits(data):
    network = randomised(Residual(), seed=1).eval()
    evaluator = evaluator_of(network, data, reestimate_norms=False)
    evaluator.prepare()
    evaluator.builder.factorise()
    half = tuple(max(1, width // 2) for width in evaluator.builder.dense_widths)
    small = len(pack(evaluator.without_memory()).block)
    found = bits(evaluator, half)
    payload = pack(evaluator.without_memory())
    assert len(payload.block) < 1.1 * small  # what is known of one candidate stays here
    assert same(bits(unpack(payload), half), found)
