import pytest
import torch
from torch import nn

from amc.data import LabelledImages
from amc.errors import AmcError
from amc.importance.taylor import taylor_terms
from amc.notes import note_once
from amc.scoring.run import logits

IMAGES = torch.randn(11, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SMALLER = "memory ran out while Small ran: it runs on smaller parts of each batch from now on"


class Small(nn.Module):
    """Stands for a network on a GPU that has room for ``room`` images; counts the images of each call."""

    def __init__(self, room):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.room = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), room
        self.calls = []

    def forward(self, images):
        self.calls.append(len(images))
        found = self.conv(images).relu().mean((2, 3))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.head(found)


def test_the_batch_is_halved_until_it_fits_and_the_outputs_stay(caplog):
    note_once.cache_clear()
    whole, halved = Small(11), Small(3)
    expected, found = (logits(network, IMAGES, 8) for network in (whole, halved))
    torch.testing.assert_close(found, expected)
    assert halved.calls == [8, 4, 2, 2, 2, 2, 2, 1]
    logits(halved, IMAGES, 8)
    assert halved.calls[8:] == [2, 2, 2, 2, 2, 1]  # it is remembered
    assert [record.getMessage() for record in caplog.records] == [SMALLER]


def test_memory_that_ends_at_one_image_is_one_line():
    with pytest.raises(AmcError, match=r"memory ran out while Small ran on 1 images; expected more memory"):
        logits(Small(0), IMAGES, 8)


def test_other_errors_are_not_taken_for_it():
    class Faulty(nn.Module):
        def forward(self, images):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        logits(Faulty(), IMAGES, 8)


def test_gradients_of_the_calibration_images_are_the_same_in_parts():
    images = LabelledImages(IMAGES, torch.arange(11) % 5)
    expected, found = (taylor_terms(Small(room), ["head"], images) for room in (11, 3))
    torch.testing.assert_close(found, expected)
