"""The normalisation that the libraries' weights expect; no weights are downloaded."""

import pytest

from amc.models import ModelSpec, build
from amc.models.normalisation import Normalisation, detector_normalisation, pretrained_normalisation
from tests.params import slow

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5,) * 3, (0.5,) * 3)


def made(name, **kwargs):
    return build(ModelSpec(name, 5, (3, 64, 64), tuple(kwargs.items())), trust_dotted_path=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squeezenet1_1", IMAGENET),
        ("torchvision:mobilenet_v2", IMAGENET),
        slow("lraspp_mobilenet_v3_large", IMAGENET),
        slow("fasterrcnn_mobilenet_v3_large_320_fpn", IMAGENET),
        ("ssdlite320_mobilenet_v3_large", HALF),
        slow("timm:mobilenetv3_small_050", IMAGENET),
        ("timm:vit_tiny_patch16_224", HALF),
        ("resnet20", None),
    ],
)
def test_the_weights_of_a_library_tell_their_normalisation(name, expected):
    kwargs = {"img_size": 64} if "vit_tiny" in name else {}
    model = made(name, **kwargs)
    assert pretrained_normalisation(model, name) == expected
    is_detector = name.startswith(("fasterrcnn", "ssd"))
    assert detector_normalisation(model) == (expected if is_detector else None)


def test_a_given_normalisation_of_a_detector_counts():
    own = made("ssdlite320_mobilenet_v3_large", image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    assert detector_normalisation(own) == Normalisation((0.0,) * 3, (1.0,) * 3)


def test_rounded_values_are_near_and_others_are_not():
    ssd = Normalisation.of([0.48235, 0.45882, 0.40784], [1 / 255] * 3)
    assert Normalisation.of([0.482, 0.459, 0.408], [0.0039] * 3).is_near(ssd)
    assert not IMAGENET.is_near(ssd)
    assert not HALF.is_near(IMAGENET)
    assert str(ssd) == "data.mean=[0.48235,0.45882,0.40784] data.std=[0.0039216,0.0039216,0.0039216]"
