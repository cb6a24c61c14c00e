from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from amc.errors import AmcError
from amc.scoring.flatten import as_matrix, is_logits

Pair = namedtuple("Pair", "first second")


@dataclass
class Record:
    scores: Tensor
    note: str


def numbered(*shape):
    return torch.arange(torch.Size(shape).numel()).float().view(shape)


def test_one_number_an_image_is_a_column():
    assert torch.equal(as_matrix({"score": numbered(3)}, 3), numbered(3)[:, None])


def test_logits_are_taken_as_they_are():
    logits = numbered(2, 5)
    assert is_logits(logits)
    assert as_matrix(logits, 2) is logits


def test_one_output_of_a_binary_classifier_is_no_logits():
    output = numbered(2, 1)
    assert not is_logits(output)
    assert torch.equal(as_matrix(output, 2), output)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
        lambda a, b: {"a": a, "none": None, "b": {"b": b}},
        lambda a, b: Pair(a, b),
        lambda a, b: [Record(a, "text"), {"labels": torch.zeros(2, dtype=torch.int64)}, b],
    ],
    ids=["tuple", "lists", "dictionaries", "named tuple", "data class"],
)
def test_every_structure_is_put_side_by_side(wrap):
    scores, maps = numbered(2, 3), numbered(2, 2, 2, 2)
    output = wrap(scores, maps)
    assert not is_logits(output)
    assert torch.equal(as_matrix(output, 2), torch.cat([scores, maps.flatten(1)], 1))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("text", "returned str without any; expected a floating-point tensor"),
        ((1, None), "returned tuple of 2 without any"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), "a tensor of torch.int64"),
        ([{"boxes": torch.zeros(7, 4)}], r"output\[0\]\['boxes'\] of shape \(7, 4\) for 2 images"),
        (torch.zeros(()), r"output of shape \(\) for 2 images"),
    ],
)
def test_an_output_without_a_row_an_image_is_named(output, message):
    with pytest.raises(AmcError, match=message):
        as_matrix(output, 2)
