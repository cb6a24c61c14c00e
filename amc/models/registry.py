"""From the name of a model to the network: the zoo, torchvision, timm, or the user's own factory.

The libraries are imported only when a name needs them.
"""

import importlib
import inspect
import json
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from amc.dotted import imported_module
from amc.errors import AmcError, SettingError, UnavailableError, brief
from amc.models import cifar_resnet, mobilenet, vgg
from amc.models.names import (
    TIMM_HINT,
    TORCHVISION,
    check_listed,
    is_code,
    is_listed_by_timm,
    known_names,
    timm_names,
    unknown,
    unknown_of_torchvision,
)
from amc.models.wrappers import unwrapped
from amc.notes import note_once
from amc.scoring.run import copied

_Factory = Callable[..., nn.Module]

_ZOO: dict[str, _Factory] = {
    "resnet20": cifar_resnet.resnet20,
    "resnet32": cifar_resnet.resnet32,
    "resnet44": cifar_resnet.resnet44,
    "resnet56": cifar_resnet.resnet56,
    "resnet110": cifar_resnet.resnet110,
    "plain20": cifar_resnet.plain20,
    "vgg16_bn": vgg.vgg16_bn,
    "mobilenet_v1": mobilenet.mobilenet_v1,
    "mobilenet_v2": mobilenet.mobilenet_v2,
}
_TORCHVISION_WHEN_LARGE = frozenset({"mobilenet_v2", "vgg16_bn"})
_WITH_AUX_HEADS = frozenset({"googlenet", "inception_v3"})
# Arguments that `build` sets itself, or that would read weights from another place.
_RESERVED_KWARGS = frozenset(
    {"num_classes", "in_chans", "aux_logits", "weights", "weights_backbone", "pretrained"}
    | {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)


@dataclass(frozen=True)
class ModelSpec:
    """The description from which a network can be built again.

    Attributes:
        name: a name that ``build`` knows.
        num_classes: number of logits.
        input_shape: (channels, height, width) of one image, in pixels.
        kwargs: further keyword arguments of the factory, as pairs.

    Raises:
        SettingError: an impossible value.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SettingError(f"model name: got {self.name!r}, expected a non-empty string")
        if not _is_positive_int(self.num_classes):
            raise SettingError(f"model num_classes: got {self.num_classes!r}, expected a positive integer")
        shape = self.input_shape
        if not isinstance(shape, tuple) or len(shape) != 3 or not all(map(_is_positive_int, shape)):
            raise SettingError(f"model input_shape: got {shape!r}, expected (channels, height, width)")

    @property
    def image_side(self) -> int:
        """Shorter side of the image in pixels."""
        return min(self.input_shape[1:])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which ``from_json`` reads.

        Raises:
            SettingError: ``kwargs`` cannot be stored as JSON.
        """
        kwargs = dict(self.kwargs)
        try:
            json.dumps(kwargs, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"model {self.name!r}: kwargs {kwargs!r} cannot be stored as JSON; "
                "expected numbers, strings, booleans, lists"
            ) from error
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "kwargs": kwargs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelSpec":
        """Read the JSON form; lists in ``kwargs`` become tuples.

        Raises:
            SettingError: a missing, unknown or impossible field.
        """
        required = {"name", "num_classes", "input_shape"}
        if not isinstance(data, Mapping) or not required <= set(data) <= required | {"kwargs"}:
            got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise SettingError(
                f"model spec: got {got}, expected the keys {sorted(required)} and perhaps 'kwargs'"
            )
        shape, kwargs = data["input_shape"], data.get("kwargs", {})
        if not isinstance(shape, list | tuple) or not isinstance(kwargs, Mapping):
            raise SettingError(
                f"model spec: got input_shape {shape!r} and kwargs {kwargs!r}, expected a list and an object"
            )
        pairs = tuple((key, _frozen(value)) for key, value in kwargs.items())
        return cls(data["name"], data["num_classes"], tuple(shape), pairs)


def build(spec: ModelSpec, *, trust_dotted_path: bool, pretrained: bool = False) -> nn.Module:
    """Build a network from its description.

    A dotted path "package.module.factory" or "package.module:factory", also in the current directory, is the
    user's own: the factory is called with the kwargs, and with ``num_classes`` if it has this parameter.
    Other names are looked up in this order:

    1. the zoo (``amc.models.names.ZOO``); for images of at least 128 pixels "mobilenet_v2" and "vgg16_bn" are
       torchvision's;
    2. torchvision's classification models;
    3. torchvision's detection models, as ``RawDetector``, and segmentation models: they return no logits;
    4. "timm:NAME", or the name of a timm model.

    "torchvision:NAME" is torchvision's for images of any size.

    Args:
        spec: name, classes, input shape and keyword arguments.
        trust_dotted_path: whether a dotted path may be imported; False for names read from files.
        pretrained: download and load the weights of torchvision or timm.

    Returns:
        A network in float32 that maps images (N, *spec.input_shape) to logits (N, spec.num_classes), unless
        it is a detection or segmentation model, or the user's own.

    Raises:
        SettingError: an unknown name, an untrusted dotted path, or options that do not fit the model.
        UnavailableError: timm is not installed.
        AmcError: the factory failed.
    """
    name = spec.name
    if is_code(name) and not _is_timm_name(name):
        if not trust_dotted_path:
            raise SettingError(
                f"model {name!r}: this is a path to Python code, which is not imported for a name read "
                "from a file; expected a zoo, torchvision or timm name: build the model and pass it yourself"
            )
        return _build_dotted(spec, pretrained)
    if name in _ZOO and not _is_large_variant(spec):
        return _build_zoo(spec, pretrained)
    own = replace(spec, name=name.removeprefix(TORCHVISION))
    if own.name in _torchvision_names():
        return _build_torchvision(own, pretrained)
    if own.name in dense_prediction_names():
        return _build_dense_prediction(own, pretrained)
    if name.startswith(TORCHVISION):
        raise unknown_of_torchvision(name)
    if name.startswith("timm:"):
        return _build_timm(spec, name.removeprefix("timm:"), pretrained)
    if _is_timm_name(name):
        return _build_timm(spec, name, pretrained)
    raise unknown(name, known_names())


def check_name(name: str) -> None:
    """Refuse a name that ``build`` does not find; the module of a dotted path is imported.

    Raises:
        SettingError: the name is unknown.
        AmcError: the module cannot be imported, or the path names no function.
    """
    check_listed(name)
    if is_code(name) and not _is_timm_name(name):
        _import_factory(name)


def usable(model: nn.Module) -> nn.Module:
    """Return the network that is worked on: without wrappers (`unwrapped`), and in float32, which is noted.

    Images are in float32, and so is every step that changes weights. A network with parameters in half or
    double precision is converted as a copy; others are returned as they are.
    """
    model = unwrapped(model)
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if not others:
        return model
    got = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
    note_once(f"{type(model).__name__} has parameters in {got}: it is converted to float32")
    return copied(model).float()


def dense_prediction_names() -> list[str]:
    """Return the names of torchvision's detectors and segmentation networks."""
    from torchvision import models

    return models.list_models(module=models.detection) + models.list_models(module=models.segmentation)


def default_weights(name: str) -> Any:
    """Return the weights of a network of torchvision that ``pretrained`` loads; None if it has none."""
    from torchvision import models

    return getattr(models.get_model_weights(name), "DEFAULT", None)


def _is_large_variant(spec: ModelSpec) -> bool:
    """Return whether a name of both zoos means torchvision's network; a line tells where it does not."""
    if spec.name not in _TORCHVISION_WHEN_LARGE:
        return False
    if spec.image_side >= mobilenet.SMALL_IMAGE_SIDE:
        return True
    note_once(
        f"{spec.name} is the variant for CIFAR, as the images have less than {mobilenet.SMALL_IMAGE_SIDE} "
        f"pixels; torchvision's own network is {TORCHVISION}{spec.name}"
    )
    return False


def _build_zoo(spec: ModelSpec, pretrained: bool) -> nn.Module:
    if pretrained:
        raise SettingError(
            f"model {spec.name!r}: got pretrained=True, expected a checkpoint file: the zoo has no weights"
        )
    _check_channels(spec)
    _check_kwargs(spec)
    factory = _ZOO[spec.name]
    offered = {"num_classes": spec.num_classes, "image_size": spec.image_side}
    return _call(spec, factory, _accepted(factory, offered))


def _build_torchvision(spec: ModelSpec, pretrained: bool) -> nn.Module:
    from torchvision import models

    _check_channels(spec)
    _check_kwargs(spec)
    defaults: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None, "num_classes": spec.num_classes}
    if pretrained:
        weights = default_weights(spec.name)
        _check_pretrained_classes(spec, None if weights is None else len(weights.meta["categories"]))
    elif spec.name in _WITH_AUX_HEADS:  # torchvision sets its own values for pretrained ones
        defaults |= {"aux_logits": False, "init_weights": True}
    model = _call(spec, lambda **kwargs: models.get_model(spec.name, **kwargs), defaults, pretrained)
    if isinstance(model, models.Inception3):  # the pretrained one has an auxiliary head
        model.aux_logits, model.AuxLogits = False, None
    return model


def _build_dense_prediction(spec: ModelSpec, pretrained: bool) -> nn.Module:
    """Build one of torchvision's detectors, as ``RawDetector``, or one of its segmentation networks."""
    from torchvision import models

    from amc.models.detection import RawDetector

    _check_channels(spec)
    _check_kwargs(spec)
    defaults: dict[str, Any] = {
        "weights": "DEFAULT" if pretrained else None,
        "weights_backbone": None,
        "num_classes": spec.num_classes,
    }
    if pretrained:
        _check_pretrained_classes(spec, len(default_weights(spec.name).meta["categories"]))
    model = _call(spec, lambda **kwargs: models.get_model(spec.name, **kwargs), defaults, pretrained)
    return RawDetector(model) if spec.name in models.list_models(module=models.detection) else model


def _build_timm(spec: ModelSpec, name: str, pretrained: bool) -> nn.Module:
    timm = _import_timm()
    if timm is None:
        raise UnavailableError(f"model {spec.name!r}: expected timm to be installed: {TIMM_HINT}")
    if not timm.is_model(name):
        raise unknown(spec.name, [f"timm:{known}" for known in timm.list_models()])
    _check_kwargs(spec)
    if pretrained:
        config = timm.get_pretrained_cfg(name)
        _check_pretrained_classes(spec, config.num_classes if config and config.has_weights else None)
    defaults = {"pretrained": pretrained, "num_classes": spec.num_classes, "in_chans": spec.input_shape[0]}
    return _call(spec, lambda **kwargs: timm.create_model(name, **kwargs), defaults, pretrained)


def _build_dotted(spec: ModelSpec, pretrained: bool) -> nn.Module:
    if pretrained:
        raise SettingError(
            f"model {spec.name!r}: got pretrained=True, expected a checkpoint file: no weights are "
            "known for your own factory"
        )
    factory = _import_factory(spec.name)
    return _call(spec, factory, _accepted(factory, {"num_classes": spec.num_classes}))


def _call(
    spec: ModelSpec, factory: _Factory, defaults: dict[str, Any], pretrained: bool = False
) -> nn.Module:
    kwargs = defaults | dict(spec.kwargs)
    try:
        model = factory(**kwargs)
    except Exception as error:
        cause = "no network to download the weights" if pretrained else "wrong kwargs or a bug in the factory"
        raise AmcError(
            f"model {spec.name!r}: building it with {kwargs!r} failed: {brief(error)}; likely cause: {cause}"
        ) from error
    if not isinstance(model, nn.Module):
        raise AmcError(
            f"model {spec.name!r}: the factory returned {type(model).__name__}, expected torch.nn.Module; "
            "likely cause: the path does not name the factory"
        )
    return usable(model)


def _import_factory(path: str) -> _Factory:
    separator = ":" if ":" in path else "."
    module_name, _, attribute = path.rpartition(separator)
    if not module_name or not attribute or module_name.startswith("."):
        raise SettingError(f"model {path!r}: expected package.module.factory or package.module:factory")
    module = imported_module(module_name, path, "model")
    try:
        factory = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        if attribute in known_names():  # torchvision.resnet18
            raise SettingError(f"model {path!r}: unknown name; did you mean {attribute!r}?") from error
        own = (name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise unknown(path, [f"{module_name}{separator}{name}" for name in own]) from error
    if not callable(factory):
        raise AmcError(
            f"model {path!r}: got {type(factory).__name__}, expected a function that returns the model"
        )
    return factory


def _accepted(factory: _Factory, offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some builtins have no signature
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered
    return {key: value for key, value in offered.items() if key in parameters}


def _check_channels(spec: ModelSpec) -> None:
    if spec.input_shape[0] != 3:
        raise SettingError(
            f"model {spec.name!r}: got images with {spec.input_shape[0]} channels, expected 3; likely cause: "
            "a grey-scale data set: repeat its channel or pass your own model"
        )


def _check_kwargs(spec: ModelSpec) -> None:
    if reserved := sorted(_RESERVED_KWARGS & dict(spec.kwargs).keys()):
        raise SettingError(
            f"model {spec.name!r}: got the kwargs {reserved}, which are set from the other options"
        )


def _check_pretrained_classes(spec: ModelSpec, classes: int | None) -> None:
    if classes is None:
        raise SettingError(f"model {spec.name!r}: got pretrained=True, but its library has no weights for it")
    if classes != spec.num_classes:
        raise SettingError(
            f"model {spec.name!r}: got num_classes={spec.num_classes}, expected {classes} as in its "
            "pretrained weights; likely cause: other classes: load a checkpoint trained on them instead"
        )


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _is_timm_name(name: str) -> bool:
    if ":" in name or ("timm" not in sys.modules and timm_names() and not is_listed_by_timm(name)):
        return False  # its import takes 10 s; a network that the user has registered there has imported it
    timm = _import_timm()
    if timm is None:
        return False
    # Only known "architecture.tag" names may have a dot: timm's is_model ignores what follows the dot.
    return timm.models.is_model_pretrained(name) if "." in name else timm.is_model(name)


def _import_timm() -> ModuleType | None:
    try:
        return importlib.import_module("timm")
    except ImportError:
        return None


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
