"""What a caller must know of an exported network, as text that its file carries.

ONNX files have properties. A .tflite carries a zip archive behind its content, as TensorFlow Lite's own tools
append labels: runtimes ignore it, and any zip reader opens the file.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amc.data import Splits

FILE = "metadata.json"
_CHANNELS = {1: "grey", 3: "RGB"}
"""Number of channels -> their order; other images are no pictures."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""The same content gives the same bytes."""


def described(splits: Splits, *, classifies: bool) -> dict[str, str]:
    """Return how images become the input of a network, and what its outputs mean.

    Values are JSON. An image is scaled so that its shorter side has ``shorter_side`` pixels, and its centre
    is cropped to ``image_size`` (height, width); without ``shorter_side`` the whole image is scaled to that
    size. Its channels, in the order of ``channels`` (``RGB`` or ``grey``; null for images that are no
    pictures) and from 0 to 1, are then standardised with ``mean`` and ``std``.

    Args:
        splits: the data set.
        classifies: whether the outputs are logits of classes.
    """
    facts = {
        "image_size": list(splits.input_shape[1:]),
        "shorter_side": splits.shorter_side,
        "upside_down": splits.upside_down,
        "channels": _CHANNELS.get(splits.input_shape[0]),
        "layout": "NCHW",
        "mean": list(splits.mean),
        "std": list(splits.std),
        "classifies": classifies,
        "class_names": list(splits.class_names),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def with_metadata(content: bytes, about: Mapping[str, str]) -> bytes:
    """Return a file with an archive behind it that holds ``about`` as ``metadata.json``."""
    if not about:
        return content
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as parts:
        values = {name: json.loads(value) for name, value in about.items()}
        text = json.dumps(values, indent=2, ensure_ascii=False)
        parts.writestr(zipfile.ZipInfo(FILE, _DATE), text)
    return content + archive.getvalue()
