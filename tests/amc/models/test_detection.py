import pytest
import torch
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import AmcError
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.models.detection import RawDetector
from amc.scoring.flatten import as_matrix
from tests.params import slow

SIZE = 64


def made(name, classes=5):
    torch.manual_seed(0)
    return build(ModelSpec(name, classes, (3, SIZE, SIZE)), trust_dotted_path=False).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_the_detector_in_a_pruned_network_still_detects(name):
    model = made(name)
    graph = trace(model, torch.zeros(1, 3, SIZE, SIZE))
    widths = [width // 2 for width in graph.dense_widths]
    pruned = slice_model(model, SlicePlan(graph, model).cut(widths))
    before, after = (sum(p.numel() for p in each.detector.backbone.parameters()) for each in (model, pruned))
    assert after < 0.5 * before
    with torch.no_grad():
        (found,) = pruned.detector([torch.rand(3, 80, 60)])
    assert set(found) == {"boxes", "scores", "labels"}
    assert found["boxes"].shape[1] == 4


def test_the_detector_decodes_the_raw_outputs():
    model, images = made("ssdlite320_mobilenet_v3_large"), torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        raw = model(images)
        features = list(model.detector.backbone(images).values())
    assert torch.equal(raw["cls_logits"], model.detector.head(features)["cls_logits"])
    assert raw["cls_logits"].shape[-1] == 5
    assert as_matrix(raw, 2).shape == (2, raw["cls_logits"][0].numel() + raw["bbox_regression"][0].numel())


@pytest.mark.parametrize(("eps", "least"), [(1e-3, 0.5), slow(0.0, 1e-12)])
def test_frozen_norms_compute_the_same_and_can_be_cut(eps, least):
    torch.manual_seed(0)
    detector = models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None, num_classes=5
    )
    norm = detector.backbone.body["1"].block[0][1]
    frozen = FrozenBatchNorm2d(norm.num_features, eps=eps)
    with torch.no_grad():
        for tensor in (frozen.weight, frozen.bias, frozen.running_mean, frozen.running_var):
            tensor.uniform_(0.5, 2.0)
        frozen.running_var[0] = least  # a dead channel, with a weight as small
        frozen.weight[0] *= least**0.5
    detector.backbone.body["1"].block[0][1] = frozen
    images = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        before = detector.eval().backbone(images)
        after = RawDetector(detector).eval()(images)["features"]
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    assert detector.backbone.body["1"].block[0][1].eps == norm.eps  # no file stores another one
    torch.testing.assert_close(after, list(before.values()))
    groups = trace(RawDetector(detector), images).groups
    assert "detector.backbone.body.1.block.0.1" in {slot.module for group in groups for slot in group.slots}


def test_segmentation_returns_its_own_structure():
    output = made("lraspp_mobilenet_v3_large")(torch.rand(1, 3, SIZE, SIZE))
    assert list(output) == ["out"]
    assert output["out"].shape == (1, 5, SIZE, SIZE)


def test_weights_for_other_classes_are_refused():
    spec = ModelSpec("lraspp_mobilenet_v3_large", 5, (3, SIZE, SIZE))
    with pytest.raises(AmcError, match="got num_classes=5, expected 21"):
        build(spec, trust_dotted_path=False, pretrained=True)
