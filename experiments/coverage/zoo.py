"""The networks that are tried, each at a small image size that it accepts."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amc.errors import AmcError

ZOOS = ("torchvision", "timm")

SIZE = 64
"""Image side in pixels, unless a network needs more."""

_SIZES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:vit_h_14": 56,
    "torchvision:*rcnn*": 128,
    "torchvision:*retinanet*": 128,
    "torchvision:fcos*": 128,
    "torchvision:ssd300_vgg16": 300,
    "torchvision:ssdlite*": 128,
    "timm:*inception*": 128,
    "timm:xception*": 96,
    "timm:hrnet*": 96,
    "timm:*mixer*": 224,
    "timm:resmlp*": 224,
    "timm:*vit*": 224,
    "timm:deit*": 224,
    "timm:levit*": 224,
    "timm:swin*": 224,
    "timm:coat*": 224,
    "timm:halonet*": 256,
    "timm:bat_*": 256,
    "timm:efficientformer*": 224,
}
_KWARGS: dict[str, dict[str, Any]] = {
    "torchvision:vit_h_14": {"image_size": 56},
    "torchvision:vit_*": {"image_size": SIZE},
}
_TIMM = (
    "resnet18", "resnet50", "resnet50d", "resnetblur50", "resnetv2_50", "resnext50_32x4d", "seresnet50",
    "ecaresnet50d", "skresnet18", "resnest50d", "res2net50_26w_4s", "legacy_seresnet18",
    "seresnext26d_32x4d", "gcresnet33ts", "densenet121", "vgg16_bn", "dla34", "hrnet_w18", "dpn68",
    "selecsls42b", "ese_vovnet19b_dw", "cspresnet50", "cspdarknet53", "darknet53", "gernet_s",
    "repvgg_a0", "mobileone_s0", "xception41", "inception_v4", "inception_resnet_v2", "regnetx_002",
    "regnety_002", "regnetz_b16", "hgnetv2_b0", "efficientnet_b0", "tf_efficientnet_b0",
    "efficientnetv2_rw_t", "tf_efficientnetv2_s", "mobilenetv2_100", "mobilenetv3_large_100",
    "tf_mobilenetv3_small_100", "mobilenetv4_conv_small", "mnasnet_100", "semnasnet_100",
    "spnasnet_100", "fbnetc_100", "lcnet_100", "tinynet_a", "mixnet_s", "rexnet_100", "hardcorenas_a",
    "ghostnet_100", "repghostnet_050", "convnext_tiny", "convnextv2_atto", "convmixer_768_32",
    "edgenext_xx_small", "inception_next_tiny", "starnet_s1", "poolformer_s12", "fastvit_t8",
    "nf_resnet50", "nfnet_l0", "resnetv2_50x1_bit", "mixer_s16_224", "resmlp_12_224",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xs",
    "mobilevitv2_050", "efficientformer_l1", "levit_128", "halonet26t",
)  # fmt: skip
"""At least one of each family of convolutional networks in timm, and well-known transformers."""


@dataclass(frozen=True)
class Case:
    """One network to try: its zoo and name, image side in pixels, and keyword arguments."""

    zoo: str
    name: str
    size: int
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.zoo}:{self.name}"


def cases(zoo: str, patterns: Sequence[str]) -> list[Case]:
    """Return the networks of a zoo (or ``all``) whose names match a pattern, or all without patterns.

    Raises:
        AmcError: No network matches.
    """
    names = {"torchvision": _torchvision_names, "timm": lambda: list(_TIMM)}
    keys = [f"{each}:{name}" for each in ZOOS if zoo in (each, "all") for name in names[each]()]
    wanted = [key for key in keys if not patterns or any(_fits(key, pattern) for pattern in patterns)]
    if not wanted:
        raise AmcError(f"--only {' '.join(patterns)}: fits none of {len(keys)} networks of --zoo {zoo}")
    return [_case(key) for key in wanted]


def _fits(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, pattern) or fnmatch.fnmatchcase(key.partition(":")[2], pattern)


def _case(key: str) -> Case:
    zoo, _, name = key.partition(":")
    size = next((size for pattern, size in _SIZES.items() if fnmatch.fnmatchcase(key, pattern)), SIZE)
    kwargs = next((own for pattern, own in _KWARGS.items() if fnmatch.fnmatchcase(key, pattern)), {})
    return Case(zoo, name, size, kwargs)


def _torchvision_names() -> list[str]:
    from torchvision import models

    parts = (models, models.segmentation, models.detection)
    return [name for part in parts for name in models.list_models(module=part)]
