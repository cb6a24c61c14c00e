import math

import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.scoring import run, scores


class Returns(nn.Module):
    """Gives back whatever `make` makes of the images."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


IMAGES = torch.randn(11, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_logits_do_not_depend_on_the_batch_size_and_leave_the_network_alone():
    network = small_network().train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole, parts = (run.logits(network, IMAGES, size) for size in (11, 4))
    torch.testing.assert_close(whole, parts)
    assert whole.shape == (11, 5)
    assert [module.training for module in network[:3]] == [True, False, True]
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_mode_is_restored_after_an_error():
    network = Returns(lambda images: (images, images)).train()
    with pytest.raises(AmcError):
        run.logits(network, IMAGES, 4)
    assert network.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda images: (images, images), "returned a tuple of 2.*one tensor"),
        (lambda images: {"out": images}, "returned a dict of 1"),
        (lambda images: [images], "returned a list of 1"),
        (lambda images: None, "returned a NoneType"),
        (lambda images: images, r"shape \(4, 3, 6, 6\)"),
        (lambda images: images.flatten(1) * math.nan, "NaN or infinity for 11 of 11"),
    ],
)
def test_unusable_output_is_refused_in_one_line(make, message):
    with pytest.raises(AmcError, match=message) as caught:
        run.logits(Returns(make), IMAGES, 4)
    assert "\n" not in str(caught.value)


def test_images_that_are_not_finite_are_named():
    given = IMAGES.clone()
    given[2:4, 0, 1] = math.inf
    with pytest.raises(AmcError, match=r"for 2 of 11 images.*: 2 of 11 images hold NaN or .* at index 2$"):
        run.logits(small_network().eval(), given, 4)


def test_no_images():
    with pytest.raises(AmcError, match="no images"):
        run.logits(small_network(), IMAGES[:0], 4)


def test_top1_and_cross_entropy_against_hand_computed_values():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert scores.top1(logits, labels) == 75.0
    terms = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(3)), math.log(2)]
    assert scores.cross_entropy(logits, labels) == pytest.approx(sum(terms) / 4)
    for measure in (scores.top1, scores.cross_entropy):
        with pytest.raises(AmcError, match="2 outputs"):
            measure(logits, labels + 1)


def test_agreement_is_zero_with_itself_and_negative_otherwise():
    draws = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 4, generator=draws)
    assert scores.agreement(dense, dense) == 0
    near, far = (
        scores.agreement(dense + scale * torch.randn(6, 4, generator=draws), dense) for scale in (0.1, 2)
    )
    assert far < near < 0
    assert scores.agreement(dense + 3, dense) == pytest.approx(0, abs=1e-12)
    with pytest.raises(AmcError, match="same shape"):
        scores.agreement(dense, dense[:3])


def test_agreement_against_a_hand_computed_value():
    dense, pruned = torch.tensor([[0.8, 0.2], [0.5, 0.5]]), torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    divergence = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    assert scores.agreement(pruned.log(), dense.log()) == pytest.approx(-divergence / 2, rel=1e-6)


def test_outputs_of_any_structure_are_one_matrix():
    network = Returns(lambda images: {"map": images, "mean": (images.mean((2, 3)),)})
    found = run.outputs(network, IMAGES, 4)
    assert torch.equal(found, torch.cat([IMAGES.flatten(1), IMAGES.mean((2, 3))], 1))
    plain = small_network()
    assert torch.equal(run.outputs(plain, IMAGES, 4), run.logits(plain, IMAGES, 4))


def test_likeness_by_hand():
    dense = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert scores.likeness(dense, dense) == 0
    assert scores.likeness(dense.mean(0).expand(2, 2), dense) == -1
    assert scores.likeness(dense + torch.tensor([0.0, 1.0]), dense) == -1
    assert scores.likeness(dense + 1, dense) == -2
    with pytest.raises(AmcError, match=r"\(2, 1\) against dense ones \(2, 2\)"):
        scores.likeness(dense[:, :1], dense)
    assert scores.likeness(dense[:1], dense[:1]) == 0
    with pytest.raises(AmcError, match=r"outputs for all images are the same.*: 1 image; expected two"):
        scores.likeness(dense[:1] + 1, dense[:1])
