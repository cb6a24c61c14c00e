"""The description of a network: what the data and the pretrained weights decide about it."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._api import WeightsEnum

from amc.cutting.reasons import hidden_state
from amc.errors import SettingError
from amc.models import build
from amc.models.spec import spec_of

SHAPE = (3, 64, 64)
DETECTOR = "fasterrcnn_resnet50_fpn"


@pytest.mark.parametrize(
    ("name", "kwargs", "pretrained", "expected"),
    [
        (DETECTOR, {}, True, 91),
        (DETECTOR, {"num_classes": 7}, False, 7),
        (DETECTOR, {}, False, 3),
        ("keypointrcnn_resnet50_fpn", {}, True, 2),
        ("lraspp_mobilenet_v3_large", {}, True, 21),
        ("torchvision:lraspp_mobilenet_v3_large", {}, True, 21),
        ("squeezenet1_1", {}, True, 3),
        ("resnet20", {}, False, 3),
    ],
)
def test_only_detectors_and_segmentation_have_other_outputs_than_the_data(name, kwargs, pretrained, expected):
    spec = spec_of(name, kwargs, 3, SHAPE, pretrained=pretrained)
    assert spec.num_classes == expected
    assert "num_classes" not in dict(spec.kwargs)


def test_other_outputs_than_those_of_the_weights_are_refused():
    spec = spec_of(DETECTOR, {"num_classes": 7}, 3, SHAPE, pretrained=True)
    with pytest.raises(SettingError, match="got num_classes=7, expected 91"):
        build(spec, trust_dotted_path=False, pretrained=True)


def test_a_classifier_takes_no_number_of_outputs():
    spec = spec_of("squeezenet1_1", {"num_classes": 7}, 3, SHAPE, pretrained=False)
    with pytest.raises(SettingError, match="num_classes"):
        build(spec, trust_dotted_path=False)


def test_a_given_argument_stays():
    spec = spec_of("googlenet", {"transform_input": False}, 1000, SHAPE, pretrained=True)
    assert dict(spec.kwargs) == {"transform_input": False}


@pytest.mark.parametrize(
    ("name", "classes", "arguments"),
    [
        ("googlenet", 1000, {"aux_logits": True, "init_weights": False}),
        ("deeplabv3_mobilenet_v3_large", 21, {"aux_loss": True, "weights_backbone": None}),
    ],
)
def test_a_pretrained_network_is_built_again_without_its_weights(name, classes, arguments, monkeypatch):
    stored = models.get_model(name, weights=None, num_classes=classes, **arguments).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: stored)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # seconds
    spec = spec_of(name, {}, 3 if classes == 21 else classes, SHAPE, pretrained=True)
    dense = build(spec, trust_dotted_path=False, pretrained=True).eval()
    again = build(spec, trust_dotted_path=False).eval()
    again.load_state_dict(dense.state_dict())
    assert hidden_state(dense, again) is None
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        found, expected = again(images), dense(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_size_that_pretrained_transformers_have_is_known():
    for name in (name for name in models.list_models(module=models) if name.startswith("vit_")):
        (size, _) = models.get_model_weights(name).DEFAULT.meta["min_size"]
        kwargs = dict(spec_of(name, {}, 1000, (3, size, size), pretrained=True).kwargs)
        assert kwargs.get("image_size", 224) == size
