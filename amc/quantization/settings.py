"""What to quantize, and how. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from amc.errors import SettingError, did_you_mean
from amc.graph.patterns import matches

METHODS = ("none", "fp16", "bf16", "dynamic_int8", "static_int8", "weight_only", "qat", "binary")
"""``dynamic_int8`` measures the range of an input in every call, ``static_int8`` on calibration images."""
INTEGER = frozenset({"dynamic_int8", "static_int8", "weight_only"})
"""Methods whose weights are integers."""
TRAINED = {"qat": "static_int8", "binary": "weight_only"}
"""Method that trains -> the method whose description the trained network has."""
BINARY_ENDS = 8
"""Bits of the first and the last layer of a network with binary weights."""
FLOAT_BITS = {"none": 32, "fp16": 16, "bf16": 16}
"""Methods without integers -> bits of a weight."""
WEIGHT_BITS = (8, 7, 6, 4, 3, 2)
"""7 bits never saturate the 16-bit sums of x86 processors without VNNI, where 8 bits may."""
RANGES = ("minmax", "percentile", "mse")
ROUNDINGS = ("nearest", "moments")
LEAST_IMAGES = 2
SMALL_SINCE = 21
"""First version of ONNX's operators with weights of 4 bits, and with blocks of weights that share a scale."""


@dataclass(frozen=True)
class QuantizeSettings:
    """Settings of a quantization.

    Attributes:
        method: one of ``METHODS``.
        weight_bits: one of ``WEIGHT_BITS``, for methods with integer weights; ``binary`` has 1 of its own.
        group: inputs of an output channel (channels times taps of the kernel) that share a scale, for
            ``weight_only``; 0, or a number that does not divide a layer's inputs, gives one a channel.
        ranges: range of an activation: all values, a percentile of them, or the one with the least squared
            error. The range of a weight covers all its values, or with ``mse`` has the least squared error.
        percentile: share of the values, in percent, that ``ranges=percentile`` keeps; for methods with
            ranges of activations from calibration images (``static_int8``, ``qat``).
        rounding: of weights: to the nearest integer, or one input after the other, where later inputs make
            up for the error of earlier ones (``moments``; OBQ, GPTQ).
        bias_correction: whether biases make up for the mean error of the rounded weights.
        exclude: layers (patterns of names) that stay float, kept as a tuple; or one pattern.
        tolerance: largest relative error of the outputs, with one layer alone quantized; a layer beyond it
            stays float. None quantizes every layer.
        sensitivity_images: images on which each layer is measured at each number of bits; 0 leaves it out.
        epochs, lr: length of the training of ``qat`` and ``binary``, and its peak learning rate.
    """

    method: str = "static_int8"
    weight_bits: int = 8
    group: int = 0
    ranges: str = "mse"
    percentile: float = 99.99
    rounding: str = "moments"
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()
    tolerance: float | None = None
    sensitivity_images: int = 64
    epochs: int = 3
    lr: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: one is impossible; the message says what was expected.
        """
        one = isinstance(self.exclude, str)
        object.__setattr__(self, "exclude", (self.exclude,) if one else tuple(self.exclude))
        for key, known in (("method", METHODS), ("ranges", RANGES), ("rounding", ROUNDINGS)):
            if (given := getattr(self, key)) not in known:
                hint = did_you_mean(str(given), known)
                raise SettingError(f"quantize.{key} is {given!r}; expected one of {', '.join(known)}{hint}")
        check_bits(self.weight_bits)
        if self.group < 0 or (self.group and self.method not in ("weight_only", "none")):
            raise SettingError(
                f"quantize.group is {self.group} with quantize.method={self.method}; expected 0, or with "
                "weight_only a number of inputs: integer kernels need one scale a channel"
            )
        if not 50 < self.percentile <= 100:
            raise SettingError(f"quantize.percentile is {self.percentile:g}; expected over 50, at most 100")
        if self.tolerance is not None and not self.tolerance > 0:
            raise SettingError(f"quantize.tolerance is {self.tolerance:g}; expected over 0, or null")
        if self.sensitivity_images < 2 and self.sensitivity_images != 0:
            raise SettingError(
                f"quantize.sensitivity_images is {self.sensitivity_images}; expected 0 for none, or 2 or "
                "more: an error is relative to how outputs differ between images"
            )
        if self.tolerance is not None and self.sensitivity_images == 0 and self.form in INTEGER:
            raise SettingError(
                f"quantize.tolerance is {self.tolerance:g}, but quantize.sensitivity_images=0 measures "
                "no layer; expected over 0 images, or quantize.tolerance=null"
            )
        if self.epochs < 1 or not 0 < self.lr < math.inf:
            raise SettingError(
                f"quantize.epochs is {self.epochs} and quantize.lr {self.lr:g}; expected at least 1, and a "
                "positive number"
            )
        if self.method == "binary" and (self.weight_bits != BINARY_ENDS or self.tolerance is not None):
            raise SettingError(
                "quantize.method=binary has 1 bit, and 8 in the first and last layer; expected "
                "quantize.weight_bits=8 and no quantize.tolerance: quantize.exclude keeps layers float"
            )
        if self.ranges == "percentile" and self.form in ("dynamic_int8", "weight_only"):
            raise SettingError(
                f"quantize.ranges is percentile with quantize.method={self.method}, which measures no "
                "activation on calibration images; expected minmax or mse, or method=static_int8 or qat"
            )
        self._check_whole()

    def _check_whole(self) -> None:
        """Refuse what names layers or bits with a method that stores all numbers in 16 bits.

        Raises:
            SettingError: there is such a setting.
        """
        if self.method not in FLOAT_BITS or self.method == "none":
            return
        unset = {"exclude": (), "tolerance": None, "weight_bits": WEIGHT_BITS[0]}
        for key, value in unset.items():
            if (given := getattr(self, key)) != value:
                shown, plain = ("null" if each is None else str(each) for each in (given, value))
                if key == "exclude":
                    shown, plain = f"[{','.join(given)}]", "[]"
                raise SettingError(
                    f"quantize.{key} is {shown} with quantize.method={self.method}, which stores all of the "
                    f"network in 16 bits; expected quantize.{key}={plain}, or a method with integers"
                )

    @property
    def form(self) -> str:
        """The method whose description the quantized network has."""
        return TRAINED.get(self.method, self.method)

    @property
    def is_small(self) -> bool:
        """Whether an ONNX file has weights of 4 bits, or blocks that share a scale (``SMALL_SINCE``)."""
        return self.form == "weight_only" and bool(
            self.group or self.weight_bits <= 4 or self.method == "binary"
        )

    def excluding(self, layer: str, *others: str) -> list[str]:
        """Return the patterns of ``exclude`` that a layer's name matches.

        Args:
            layer: its name; a further call (``#2``) is the same layer, and may be named by itself, too.
            others: further names of the layer.
        """
        names = (layer, layer.split("#")[0], *others)
        return [each for each in self.exclude if any(matches(name, each) for name in names)]

    def bits_of(self, *, end: bool) -> int:
        """Return the bits of a quantized layer; ``end`` says whether it is the network's first or last."""
        return 1 if self.method == "binary" and not end else self.weight_bits


def stored_bits(settings: QuantizeSettings, bits: int) -> int:
    """Return what a weight of ``bits`` takes in the file that is exported: kernels on integers take bytes."""
    if settings.method in FLOAT_BITS:
        return FLOAT_BITS[settings.method]
    return 4 if settings.form == "weight_only" and bits <= 4 else 8


def check_bits(bits: int) -> None:
    """Refuse a number of bits that no weight is quantized to.

    Raises:
        SettingError: the number is not one of ``WEIGHT_BITS``.
    """
    if bits not in WEIGHT_BITS:
        known = ", ".join(map(str, sorted(WEIGHT_BITS)))
        raise SettingError(f"quantize.weight_bits is {bits}; expected one of {known}")
