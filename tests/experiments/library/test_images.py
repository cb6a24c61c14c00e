"""Images in the forms that people have them in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import amc
from amc.data import LabelledImages
from amc.data.mixing import mixed
from amc.notes import note_once
from experiments.library.images import collect_images
from tests.experiments.library.helpers import LABELS, images, network


@pytest.mark.parametrize(
    "validation",
    [
        (images(), LABELS),
        TensorDataset(images(), LABELS),
        DataLoader(TensorDataset(images(), LABELS), batch_size=24),
        [{"image": images(), "label": LABELS}],
    ],
    ids=["pair", "data set", "loader", "dictionaries"],
)
def test_images_of_any_kind_with_labels_give_one_network(validation: object) -> None:
    result = amc.compress(network(), images(32), validation, macs_ratio=0.5, agent="greedy", progress=False)
    assert result.strategy.macs_ratio <= 0.5
    assert result.report["pruned"]["macs"] == result.report["candidate"]["macs"]
    assert 0 <= result.report["pruned"]["top1"] <= 100
    assert [group.kept for group in result.strategy.groups] == result.report["pruned"]["widths"]
    expected = amc.compress(network(), images(32), (images(), LABELS), macs_ratio=0.5, agent="greedy")
    assert torch.equal(result.model(images()), expected.model(images()))


def test_images_that_come_class_by_class_are_used_in_a_mixed_order() -> None:
    sorted_ones = LabelledImages(images(), LABELS.sort().values)
    options = {"macs_ratio": 0.5, "agent": "greedy", "progress": False}
    result = amc.compress(network(), sorted_ones, sorted_ones, **options)
    expected = amc.compress(network(), mixed(sorted_ones), mixed(sorted_ones), **options)
    assert torch.equal(result.model(images()), expected.model(images()))
    assert result.report["pruned"]["refit"] == "traced"


BLACK = torch.zeros(3, 8, 8)


class Entries(Dataset[Any]):
    """A data set of given entries."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: int) -> Any:
        return self.entries[place]


class Boxes(Dataset):
    """A data set for detection: each image has another number of boxes."""

    def __init__(self, sizes: tuple[int, ...] = (8, 8)) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return 16

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.sizes[place % 2]
        return torch.randn(3, size, size), torch.zeros(place % 3, 4)


def test_a_data_set_of_boxes_gives_its_images() -> None:
    found, labelled = collect_images(Boxes(), "validation")
    assert (tuple(found.images.shape), labelled) == ((16, 3, 8, 8), False)
    with pytest.raises(amc.SettingError, match="cannot be joined to a batch: RuntimeError"):
        collect_images(Boxes((8, 9)), "validation")


@pytest.mark.parametrize(
    ("entry", "labelled"),
    [
        (lambda number: {"image": BLACK, "label": number, "boxes": torch.zeros(number, 4)}, True),
        (lambda number: {"image": BLACK, "boxes": torch.zeros(number, 4)}, False),
        (lambda number: (BLACK, number, torch.zeros(number)), True),
        (lambda number: (BLACK, number, {f"key{number}": 1}), True),
        (lambda number: (BLACK, {f"key{number}": 1}), False),
    ],
)
def test_only_what_cannot_be_joined_is_left_out(entry: Callable[[int], Any], labelled: bool) -> None:
    found, has_labels = collect_images(Entries([entry(0), entry(1)]), "validation")
    assert found.images.shape == (2, 3, 8, 8)
    assert has_labels == labelled
    assert found.labels.tolist() == [0, labelled]


def test_memory_that_runs_out_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("experiments.library.images.default_collate", full)
    with pytest.raises(MemoryError):
        collect_images(Entries([BLACK]), "validation")


def test_two_batches_in_a_list_are_all_images() -> None:
    found, labelled = collect_images([images(), images(32)], "calibration")
    assert (len(found), labelled) == (96, False)


def test_labels_in_a_column_are_labels() -> None:
    found, labelled = collect_images((images(), LABELS[:, None]), "validation")
    assert labelled
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("targets", [torch.zeros(64, 5, 4), [{"boxes": torch.zeros(2, 4)}] * 64])
def test_targets_that_are_no_labels_are_left_out_with_a_note(
    targets: object, caplog: pytest.LogCaptureFixture
) -> None:
    note_once.cache_clear()
    found, labelled = collect_images([(images(), targets)], "validation")
    assert (len(found), labelled) == (64, False)
    assert "validation: the targets" in caplog.text
