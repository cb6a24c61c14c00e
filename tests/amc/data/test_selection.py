"""Images that are chosen instead of drawn."""

import pytest
import torch

from amc.data import build
from amc.data.selection import Selection, choose, selected
from amc.errors import SettingError


def pool(count=300, classes=3, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    found = torch.randn(count, columns, generator=generator) + 3 * torch.nn.functional.one_hot(
        labels, columns
    )
    return labels, found


@pytest.mark.parametrize("method", ["random", "herding", "margin"])
def test_every_class_has_its_share_in_every_first_part(method):
    labels, found = pool()
    index = choose(method, labels, found, 60)
    assert len(index.unique()) == 60
    shares = labels.bincount() / len(labels)
    for count in (30, 60):
        assert torch.allclose(labels[index[:count]].bincount() / count, shares, atol=0.08)


def test_herding_is_closer_to_the_mean_than_a_draw():
    labels, found = pool()

    def distance(method):
        return float((found[choose(method, labels, found, 30)].mean(0) - found.mean(0)).norm())

    assert distance("herding") < 0.3 * distance("random")


def test_margin_takes_the_images_that_are_nearly_of_another_class():
    labels, found = pool()
    best = found.topk(2, dim=1).values
    margin = best[:, 0] - best[:, 1]
    index = choose("margin", labels, found, 60)
    for label in range(3):
        own = index[labels[index] == label]
        others = (labels == label).nonzero().flatten()
        left = others[~torch.isin(others, own)]
        assert margin[own].max() <= margin[left].min()


def test_margin_needs_classes():
    labels, _ = pool()
    with pytest.raises(SettingError, match="needs two classes or more; the network returns 1"):
        choose("margin", labels, torch.zeros(len(labels), 1), 10)


def test_both_parts_shrink_and_the_fingerprint_changes():
    splits = build("fake", search_val=32, calibration=16, train=64, test=8, num_classes=4, image_size=8)
    seen = []

    def outputs(images):
        seen.append(len(images))
        return images.flatten(1)[:, :4]

    found = selected(splits, Selection("herding", 8, 12), outputs)
    assert (len(found.calibration), len(found.search_val), seen) == (8, 12, [16, 32])
    assert found.fingerprint != splits.fingerprint
    assert selected(splits, Selection(), outputs) is splits
    part = selected(splits, Selection("random", None, 12), outputs)
    assert part.calibration is splits.calibration
    assert len(seen) == 2, "a draw asks nothing of the network"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("herd", 4, 4), "data.select is 'herd'; expected one of random, herding, margin"),
        (("margin", 0, None), "data.select_calibration is 0; expected at least 1"),
        (("random", None, 1), "data.select_search_val is 1; expected at least 2"),
        (("margin", None, None), "no number is given; write data.select_calibration=N"),
    ],
)
def test_an_impossible_selection_is_refused(given, message):
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        Selection(*given)


def test_more_images_than_there_are_are_refused():
    splits = build("fake", search_val=32, calibration=16, train=64, test=8, num_classes=4, image_size=8)
    with pytest.raises(SettingError, match=r"select_search_val is 33, but data\.search_val gives 32 images"):
        Selection("herding", 4, 33).check(splits)
