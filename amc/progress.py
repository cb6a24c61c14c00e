"""The one way to draw a progress bar."""

from __future__ import annotations

from tqdm import tqdm


def progress(
    total: int | None,
    description: str,
    unit: str,
    *,
    initial: int = 0,
    delay: float = 0.0,
    stays: bool = False,
    shown: bool = True,
) -> tqdm:
    """Return a progress bar on standard error.

    Nothing is drawn if standard error is not a terminal.

    Args:
        total: number of steps; None if unknown.
        description: the work in one or two words, such as ``"training"``.
        unit: the name of one step, such as ``"batch"``.
        initial: steps that are already done.
        delay: seconds before the bar appears.
        stays: whether the bar stays on the terminal when it is closed.
        shown: whether the bar is drawn at all.
    """
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        delay=delay,
        leave=stays,
        disable=None if shown else True,
    )
