"""Images that are normalised otherwise than the weights of the dense network expect are refused, or told."""

from dataclasses import replace

import pytest

from amc.data import synthetic
from amc.errors import SettingError
from amc.models import ModelSpec, build
from amc.notes import note_once
from experiments.run.problem.normalisation import check_normalisation
from tests.experiments.helpers import composed

SSD = "ssdlite320_mobilenet_v3_large"
IMAGENET, HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)
PHOTOS = ("data=imagefolder", "data.root=photos", f"model={SSD}")


def checked(*words, normalised=IMAGENET):
    mean, std = normalised
    splits = replace(synthetic(image_size=8), mean=mean, std=std)
    detector = build(ModelSpec(SSD, 5, (3, 64, 64)), trust_dotted_path=False)
    check_normalisation(composed(*words), detector, splits)


def test_another_normalisation_than_that_of_pretrained_weights_is_refused():
    expected = r"expect images with data\.mean=\[0\.5,.* data\.std=\[0\.5,0\.5,0\.5\], got data\.mean="
    with pytest.raises(SettingError, match=expected):
        checked(*PHOTOS, "model.pretrained=true")
    checked(*PHOTOS, "model.pretrained=true", normalised=HALF)
    with pytest.raises(SettingError, match=r"write the first, or let the Splits of data\.factory"):
        checked("data=own", "data.factory=mine.make", f"model={SSD}", "model.pretrained=true")
    checked("data=fake", f"model={SSD}", "model.pretrained=true", normalised=((0.5,) * 3, (0.25,) * 3))


def test_of_a_checkpoint_of_a_detector_it_is_told_once(caplog):
    note_once.cache_clear()
    for _ in range(2):
        checked(*PHOTOS, "model.checkpoint=net.pth")
    checked(*PHOTOS, "model.checkpoint=net.pth", normalised=HALF)
    checked(*PHOTOS)
    (line,) = caplog.messages
    assert "write the first, if model.checkpoint=net.pth was trained so" in line
