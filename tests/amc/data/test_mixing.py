import pytest
import torch

from amc.data import LabelledImages
from amc.data.mixing import mixed, ordered_by_class
from amc.data.picking import stratified_pick

IN_ORDER = {
    "ten classes": torch.arange(10).repeat_interleave(30),
    "a rare class": torch.tensor([0] * 450 + [1] * 50),
    "two images a class": torch.arange(500).repeat_interleave(2),
    "few images": torch.arange(2).repeat_interleave(5),
    "the first classes, then the others": torch.cat([torch.arange(100) % 5, torch.arange(100) % 5 + 5]),
}


@pytest.mark.parametrize("labels", IN_ORDER.values(), ids=IN_ORDER)
def test_images_in_order_of_their_classes_are_mixed_and_keep_their_labels(labels):
    assert ordered_by_class(labels)
    images = labels.float()[:, None, None, None]
    found = mixed(LabelledImages(images, labels))
    assert torch.equal(found.images.flatten().long(), found.labels)
    assert torch.equal(found.labels.sort().values, labels.sort().values)
    assert torch.equal(found.labels, mixed(LabelledImages(images, labels)).labels)
    assert not ordered_by_class(found.labels)


@pytest.mark.parametrize("labels", [*IN_ORDER.values(), torch.arange(40), torch.zeros(9, dtype=torch.int64)])
def test_mixed_images_stay_as_they_are(labels):
    own = labels[stratified_pick(labels, len(labels), seed=3)]
    given = LabelledImages(own.float(), own)
    assert mixed(given) is given


def test_without_labels_every_order_is_changed():
    given = LabelledImages(torch.arange(40.0), torch.zeros(40, dtype=torch.int64))
    found = mixed(given, labelled=False).images
    assert not torch.equal(found, given.images)
    assert torch.equal(found.sort().values, given.images)
