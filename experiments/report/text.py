"""Tables and numbers as text: aligned for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
"""The cell of a value that was not measured."""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of equal length as lines, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Return rows of equal length as a Markdown table, the head first; bars and line breaks are escaped."""
    head, *body = (_markdown_row([str(cell) for cell in row]) for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def decimals(value: float | None, digits: int = 2, *, missing: str = "") -> str:
    """Return a number with ``digits`` decimals, and ``missing`` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def times_smaller(ratio: float | None) -> str:
    """Return a speed-up or a saving with two decimals, such as ``1.85x``; empty for None."""
    return "" if ratio is None else f"{ratio:.2f}x"


def cost(network: Mapping[str, Any]) -> list[str]:
    """Return the cells of a network's cost: ``macs`` and ``params`` in millions."""
    return [decimals(network["macs"] / 1e6), decimals(network["params"] / 1e6, 3)]


def number(value: float) -> str:
    """Return three or four significant digits, without an exponent in the usual range."""
    size = abs(value)
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4}f}"


def duration(seconds: float) -> str:
    """Return a time such as ``0.35 s``, ``3 min 20 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def millions(count: float) -> str:
    """Return a count of MACs or parameters in millions."""
    return number(count / 1e6)


def correlation_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of stage ``proxies``, its head first: one score a row, with 95% intervals.

    Args:
        facts: ``spearman`` (score -> what it predicts -> correlation, low, high, or None) and ``reward``.
    """
    scores = facts["spearman"]
    kinds = list(next(iter(scores.values())))
    rows = [["score on search_val", *(f"unseen {kind}" for kind in kinds)]]
    for name, own in scores.items():
        label = f"reward: {facts['reward']}" if name == "reward" else name
        rows.append([label, *(_interval(own[kind]) for kind in kinds)])
    return rows


def _interval(found: Sequence[float] | None) -> str:
    if found is None:
        return MISSING
    value, low, high = found
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
