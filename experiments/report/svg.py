"""The style that all figures share, and figures as SVG text."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text, not glyph outlines: small, selectable, in the page's colours
    "text.parse_math": False,  # a "$" in a layer's name is a dollar sign
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "legend.frameon": False,
}


def svg(
    draw: Callable[[Figure], None], width: float, height: float, style: Mapping[str, Any], salt: str
) -> str:
    """Return a new figure as SVG; the same drawing gives the same bytes.

    Args:
        draw: draws on the figure.
        width, height: in inches.
        style: matplotlib's settings beside the shared ones.
        salt: names of clip paths and markers are hashes of their shapes and this.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells that it has looked for fonts
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.style.context(["default", {**_STYLE, **style, "svg.hashsalt": salt}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    return buffer.getvalue()
