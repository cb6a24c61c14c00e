import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models._api import WeightsEnum

from amc.errors import AmcError
from amc.models import CifarResNet, ModelSpec, OptionAShortcut, build, names, plain20, registry, resnet20
from amc.models.registry import usable
from amc.notes import note_once

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def make(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, **kwargs: object) -> nn.Module:
    return build(ModelSpec(name, classes, shape, tuple(kwargs.items())), trust_dotted_path=True)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, counted with hooks."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return total


@pytest.fixture
def user_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Write an importable module with the given source and return its name, which no other test has."""
    monkeypatch.syspath_prepend(tmp_path)
    name = "user_" + "".join(c if c.isalnum() else "_" for c in request.node.name)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    sys.modules.pop(name, None)


# Parameter counts with 10 classes. ResNets: He et al. 2016 (arXiv:1512.03385), table 6, give 0.27 / 0.46 /
# 0.66 / 0.85 / 1.7 M; exact numbers from summing 3x3 convolutions, batch norms and the linear layer (option A
# has no parameters). vgg16_bn: kuangliu/pytorch-cifar. mobilenet_v2: chenyaofo/pytorch-cifar-models (2.24 M).
# mobilenet_v1: 3 206 976 in `features` (Howard et al. 2017: 4.2 M with 1000 classes) + 10 250.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("plain20", 269_722),
        ("vgg16_bn", 14_728_266),
        ("mobilenet_v1", 3_217_226),
        ("mobilenet_v2", 2_236_682),
    ],
)
def test_zoo_parameters_and_output_shape(name: str, count: int) -> None:
    model = make(name).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *CIFAR)).shape == (2, 10)
    assert parameters(model) == count


def test_available_lists_the_zoo() -> None:
    assert list(names.ZOO) == sorted(registry._ZOO)


def test_torchvisions_names_are_those_that_it_lists() -> None:
    modules = (models, models.detection, models.segmentation)
    assert list(names.torchvision_names()) == sorted(
        name for module in modules for name in models.list_models(module=module)
    )


@pytest.mark.slow
def test_timms_names_are_those_that_it_lists() -> None:
    timm = pytest.importorskip("timm")
    assert list(names.timm_names()) == sorted(timm.list_models())
    assert {"tv_resnet34", "gluon_senet154"} <= names._timm_with_old_names()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet21", "resnet20"),
        ("timm:resnet10", "timm:resnet10t"),
        ("torchvision:mobilenetv2", "torchvision:mobilenet_v2"),
    ],
)
def test_an_unlisted_name_is_refused_by_the_sources(name: str, suggestion: str) -> None:
    with pytest.raises(AmcError, match=f"did you mean .*'{suggestion}'"):
        names.check_listed(name)


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("resnet20", "resnet56", False),
        ("torchvision:resnet18", "resnet18", True),
        ("timm:resnet18.a1_in1k", "timm:resnet18", True),
        ("timm:resnet18", "timm:resnet34", False),
        ("torchvision.models.resnet.ResNet", "resnet18", True),  # as a result of the library has it
        ("resnet20", "mine:make", True),
    ],
)
def test_spellings_of_one_network(name: str, other: str, expected: bool) -> None:
    assert names.may_be_one(name, other) == names.may_be_one(other, name) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("resnet20", "resnet50", "fcn_resnet50", "timm:resnet10t.c3_in1k", "tv_resnet34", "mine.make"),
        *("torchvision:resnet18", "torchvision:fcn_resnet50"),
    ],
)
def test_a_listed_name_and_a_path_of_code_pass(name: str) -> None:
    names.check_listed(name)


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "mobilenet_v1", "mobilenet_v2"])
def test_num_classes_is_used(name: str) -> None:
    head = [module for module in make(name, classes=7).modules() if isinstance(module, nn.Linear)][-1]
    assert head.out_features == 7


def test_mobilenet_v1_imagenet_cost() -> None:
    model = make("mobilenet_v1", IMAGENET, 1000)
    # Howard et al. 2017, table 8: 569 M multiply-adds and 4.2 M parameters at width 1.0, 224x224
    assert macs(model, IMAGENET) == 568_740_352
    assert parameters(model) == 4_231_976


def test_resnet20_cost() -> None:
    # 40.55 M: stem and three stages of 3x3 convolutions, and the linear layer
    assert macs(make("resnet20"), CIFAR) == 40_551_040


@pytest.mark.parametrize(("shape", "side"), [(CIFAR, 2), (IMAGENET, 7)])
def test_mobilenet_v1_final_map(shape: tuple[int, int, int], side: int) -> None:
    model = make("mobilenet_v1", shape).eval()
    with torch.no_grad():
        assert model.features(torch.zeros(1, *shape)).shape == (1, 1024, side, side)


def test_mobilenet_v2_final_map() -> None:
    model = make("mobilenet_v2").eval()
    with torch.no_grad():
        assert model.features(torch.zeros(1, *CIFAR)).shape == (1, 1280, 4, 4)


def test_mobilenet_v1_keys() -> None:
    model = make("mobilenet_v1")
    modules = dict(model.named_modules())
    assert len(model.features) == 27
    assert [type(layer) for layer in modules["features.26"]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]
    assert modules["features.1.0"].groups == 32
    assert modules["features.2.0"].kernel_size == (1, 1)


def test_resnet_keys_are_akamasters() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{entry}" for entry in norm)}
    for block in (f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)):
        expected |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
        expected |= {f"{block}.bn{i}.{entry}" for i in (1, 2) for entry in norm}
    assert set(plain20().state_dict()) == expected
    sources = {"layer2.0.shortcut.source", "layer3.0.shortcut.source"}
    assert set(resnet20().state_dict()) == expected | sources


def test_plain20_has_no_shortcut() -> None:
    assert not any(isinstance(module, OptionAShortcut) for module in plain20().modules())
    block = plain20().layer1[0].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
        assert not block(torch.ones(1, 16, 4, 4)).any()


@pytest.mark.parametrize(
    ("channels", "stride", "side"), [((16, 32), 2, 8), ((32, 64), 2, 7), ((16, 32), 1, 5), ((3, 6), 2, 4)]
)
def test_shortcut_equals_padding(channels: tuple[int, int], stride: int, side: int) -> None:
    shortcut = OptionAShortcut(*channels, stride)
    x = torch.randn(2, channels[0], side, side)
    left = (channels[1] - channels[0]) // 2
    right = channels[1] - channels[0] - left
    reference = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, left, right))
    assert torch.equal(shortcut(x), reference)


def test_shortcut_follows_source() -> None:
    shortcut = OptionAShortcut(4, 8)
    shortcut.in_channels, shortcut.out_channels = 2, 3
    shortcut.source = torch.tensor([1, -1, 0])
    x = torch.randn(1, 2, 4, 4)
    out = shortcut(x)
    assert torch.equal(out[:, 0], x[:, 1, ::2, ::2])
    assert not out[:, 1].any()
    assert torch.equal(out[:, 2], x[:, 0, ::2, ::2])


def test_dense_shortcut_needs_no_source() -> None:
    shortcut = OptionAShortcut(4, 8)
    assert not shortcut.load_state_dict({}).missing_keys
    assert shortcut.source.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1]


def test_pruned_shortcut_needs_source() -> None:
    shortcut = OptionAShortcut(4, 8)
    shortcut.source[0] = 3
    assert shortcut.load_state_dict({}, strict=False).missing_keys == ["source"]
    assert shortcut.load_state_dict({"source": torch.arange(8) % 4})
    assert shortcut.source.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("bad", [4, -2])
def test_shortcut_refuses_channels_that_do_not_exist(bad: int) -> None:
    shortcut = OptionAShortcut(4, 8)
    with pytest.raises(RuntimeError, match="expected -1 to 3"):
        shortcut.load_state_dict({"source": torch.full((8,), bad)})
    assert shortcut.source.max() == 3


def test_bad_depth() -> None:
    with pytest.raises(ValueError, match="got depth 21"):
        CifarResNet(21)


# --- ModelSpec


def test_spec_round_trip() -> None:
    spec = ModelSpec("some.factory", 5, CIFAR, (("width", 0.5), ("blocks", (1, (2, 3)))))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert hash(spec) == hash(ModelSpec.from_json(spec.to_json()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "non-empty"),
        ({"name": 3}, "non-empty"),
        ({"num_classes": 0}, "positive integer"),
        ({"num_classes": True}, "positive integer"),
        ({"input_shape": [3, 32]}, "height, width"),
        ({"input_shape": [3, 32, -1]}, "height, width"),
        ({"input_shape": "332"}, "expected a list"),
        ({"kwargs": [1]}, "expected a list and an object"),
        ({"widht": 1}, "expected the keys"),
    ],
)
def test_spec_refuses(change: dict[str, object], message: str) -> None:
    good = ModelSpec("resnet20", 10, CIFAR).to_json()
    with pytest.raises(AmcError, match=message):
        ModelSpec.from_json(good | change)


@pytest.mark.parametrize("shape", [None, 32, [3, 32, 32], (3, 32, 32.0)])
def test_spec_refuses_shape(shape: object) -> None:
    with pytest.raises(AmcError, match="height, width"):
        ModelSpec("resnet20", 10, shape)


def test_spec_refuses_missing_key_and_unstorable_kwargs() -> None:
    with pytest.raises(AmcError, match="expected the keys"):
        ModelSpec.from_json({"name": "resnet20"})
    with pytest.raises(AmcError, match="cannot be stored as JSON"):
        ModelSpec("resnet20", 10, CIFAR, (("norm", nn.BatchNorm2d),)).to_json()


# --- name resolution


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg16_bn"])
def test_names_of_both_zoos_follow_the_image_size(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note_once.cache_clear()
    asked: list[str] = []
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, **_: asked.append(name) or nn.Identity()
    )
    make(name, CIFAR)
    assert asked == []
    (line,) = caplog.messages
    assert f"torchvision's own network is torchvision:{name}" in line
    make(name, (3, 128, 160))
    assert asked == [name]
    make(f"torchvision:{name}", CIFAR)
    assert asked == [name] * 2
    assert len(caplog.messages) == 1


def test_torchvision_model() -> None:
    assert parameters(make("mobilenet_v2", IMAGENET, 1000)) == 3_504_872
    assert make("squeezenet1_1", IMAGENET, 5).classifier[1].out_channels == 5


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
@pytest.mark.parametrize("pretrained", [False, True])
def test_networks_with_auxiliary_heads_return_a_tensor(
    name: str, side: int, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # seconds
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    spec = ModelSpec(name, 1000, (3, side, side))
    model = build(spec, trust_dotted_path=False, pretrained=pretrained).train()
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 1000)


def test_pretrained_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(AmcError, match="no route to host; likely cause: no network"):
        build(ModelSpec("squeezenet1_1", 1000, IMAGENET), trust_dotted_path=False, pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("squeezenet1_1", "num_classes=10, expected 1000"),
        ("resnet20", "zoo has no weights"),
        ("a:b", "own factory"),
    ],
)
def test_pretrained_refused(name: str, message: str) -> None:
    with pytest.raises(AmcError, match=message):
        build(ModelSpec(name, 10, CIFAR), trust_dotted_path=True, pretrained=True)


def test_timm_model() -> None:
    pytest.importorskip("timm")
    model = make("timm:resnet10t", (1, 64, 64), 5).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 5)
    assert parameters(make("resnet10t", CIFAR, 5)) > parameters(model)
    with pytest.raises(AmcError, match="did you mean 'timm:resnet10t'"):
        make("timm:resnet10tt")


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(AmcError, match=r"pip install amc-search\[timm\]"):
        make("timm:resnet10t")
    with pytest.raises(AmcError, match=r"pip install amc-search\[timm\]"):
        make("resnet10t")
    with pytest.raises(
        AmcError, match=r"no module 'resnet10t'.*timm, which needs pip install amc-search\[timm\]"
    ):
        names.check_listed("resnet10t.c3_in1k")
    names.check_listed("amc.models.vgg.vgg16_bn")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("plan20", "plain20"),
        ("rasnet56", "resnet56"),
        ("mobilnet_v1", "mobilenet_v1"),
        ("vgg11bn", "vgg11_bn"),
        ("torchvision.resnet18", "resnet18"),
        ("torchvision:resnet20", "torchvision:resnet50"),
        ("amc.models.cifar_resnet:resnet_20", "amc.models.cifar_resnet:resnet20"),
    ],
)
def test_unknown_name_suggests(name: str, suggestion: str) -> None:
    with pytest.raises(AmcError, match=rf"unknown name; did you mean .*\b{suggestion}\b"):
        make(name)


def test_unknown_name_without_a_close_one_lists_the_zoo() -> None:
    with pytest.raises(AmcError, match=r"the zoo has .*resnet20"):
        make("qqqqqqqq")


@pytest.mark.parametrize(
    ("name", "kwargs", "shape", "message"),
    [
        ("resnet20", {}, (1, 28, 28), "1 channels, expected 3"),
        ("squeezenet1_1", {}, (1, 28, 28), "1 channels, expected 3"),
        ("resnet20", {"width": 2}, CIFAR, "unexpected keyword argument 'width'"),
        ("resnet20", {"num_classes": 3}, CIFAR, r"kwargs \['num_classes'\]"),
        ("squeezenet1_1", {"weights": "DEFAULT"}, CIFAR, r"kwargs \['weights'\]"),
    ],
)
def test_zoo_refuses(name: str, kwargs: dict[str, object], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(AmcError, match=message):
        make(name, shape, **kwargs)


# --- dotted paths

FACTORY = """
from torch import nn
from torchvision import models
def with_classes(num_classes, width=4):
    return nn.Linear(width, num_classes)
def with_kwargs(**kwargs):
    return nn.Linear(4, kwargs["num_classes"])
def without_classes():
    return nn.Linear(4, 3)
class Nets:
    tiny = nn.Identity
not_callable = 3
def returns_none(num_classes):
    return None
def fails(num_classes):
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.mark.parametrize("separator", [".", ":"])
@pytest.mark.parametrize(
    ("factory", "kwargs", "weight"),
    [
        ("with_classes", {}, (10, 4)),
        ("with_classes", {"width": 2}, (10, 2)),
        ("with_kwargs", {}, (10, 4)),
        ("without_classes", {}, (3, 4)),
    ],
)
def test_dotted_path(
    user_module: Callable[[str], str],
    separator: str,
    factory: str,
    kwargs: dict[str, object],
    weight: tuple[int, int],
) -> None:
    model = make(f"{user_module(FACTORY)}{separator}{factory}", **kwargs)
    assert model.weight.shape == weight


def test_dotted_path_to_a_nested_name(user_module: Callable[[str], str]) -> None:
    assert isinstance(make(f"{user_module(FACTORY)}:Nets.tiny"), nn.Identity)


def test_dotted_path_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_in_cwd.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert isinstance(make("module_in_cwd.without_classes"), nn.Linear)
    del sys.modules["module_in_cwd"]


@pytest.mark.slow
def test_a_dotted_path_imports_neither_torchvision_nor_timm(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 4, 1)\n")
    code = (
        "import sys; from amc.models import ModelSpec, build; from amc.models.registry import check_name\n"
        "check_name('mine.make'); build(ModelSpec('mine.make', 4, (3, 8, 8)), trust_dotted_path=True)\n"
        "assert not {'torchvision', 'timm'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": f"{Path(__file__).parents[3]}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_untrusted_dotted_path_is_not_imported(user_module: Callable[[str], str]) -> None:
    name = user_module("raise SystemExit('imported')")
    for path in (f"{name}.factory", f"{name}:factory"):
        with pytest.raises(AmcError, match="pass it yourself"):
            build(ModelSpec(path, 10, CIFAR), trust_dotted_path=False)
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("not_callable", "got int, expected a function"),
        ("returns_none", "returned NoneType, expected torch.nn.Module"),
        ("fails", "RuntimeError: first line second line"),
        ("with_clases", "did you mean .*with_classes"),
    ],
)
def test_bad_factory(user_module: Callable[[str], str], factory: str, message: str) -> None:
    with pytest.raises(AmcError, match=message) as caught:
        make(f"{user_module(FACTORY)}.{factory}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["import no_such_module", "raise SystemExit(3)", "def broken(:", "1 / 0"])
def test_failing_import(user_module: Callable[[str], str], source: str) -> None:
    with pytest.raises(AmcError, match=r"importing .* failed") as caught:
        make(f"{user_module(source)}.factory")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [":", ".a", "a.", "a:", ":a", "..a.b", "no_such_package.factory"])
def test_malformed_dotted_path(name: str) -> None:
    with pytest.raises(AmcError, match=r"expected package\.module|importing"):
        make(name)


@pytest.mark.parametrize("precision", ["half", "double", "bfloat16"])
def test_a_network_of_another_precision_is_converted_and_named(
    user_module: Callable[[str], str], precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    note_once.cache_clear()
    name = user_module(
        "from torch import nn\n"
        "def make(num_classes):\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)).{precision}()\n"
    )
    for _ in range(2):
        model = build(ModelSpec(f"{name}.make", 5, (3, 2, 2)), trust_dotted_path=True)
        assert model(torch.zeros(1, 3, 2, 2)).dtype == torch.float32
    (record,) = caplog.records
    assert "is converted to float32" in record.message


class Blocks(nn.Module):
    """Two blocks that share a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.first, self.second = (nn.Sequential(self.shared, nn.ReLU()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def _compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def _compiled_inside(module: Blocks) -> nn.Module:
    module.first = _compiled(nn.Sequential(_compiled(module.first[0]), module.first[1]))
    return module


def _compiled_in_place(module: nn.Module) -> nn.Module:
    module.first.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    "wrap",
    [
        _compiled,
        _compiled_inside,
        _compiled_in_place,
        lambda module: nn.DataParallel(_compiled(module)),
        lambda module: _compiled(nn.DataParallel(module)),
    ],
)
def test_a_compiled_network_is_used_as_it_was_before(wrap) -> None:
    plain = Blocks()
    expected, x = plain.state_dict(), torch.rand(2, 4)
    logits = plain(x)
    found = usable(wrap(plain))
    assert {type(module) for module in found.modules()} == {Blocks, nn.Sequential, nn.Linear, nn.ReLU}
    assert found.state_dict().keys() == expected.keys()
    assert found.first[0] is found.second[0] is found.shared
    assert torch.equal(found(x), logits)


def test_a_network_usable_is_returned_as_it_is() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(2, dtype=torch.float64))
    assert usable(model) is usable(nn.DataParallel(model)) is model
    assert model.table.dtype == torch.float64
