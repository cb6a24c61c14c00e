"""Reports: tables of the terminal, SVG plots and HTML pages.

- ``html.py``: the pages, from the templates beside it.
- ``answers.py``, ``sections.py``: what the page of a run says, in sentences and in tables.
- ``quantization.py``, ``plots_quantized.py``: the same of quantized networks.
- ``charts.py``: charts whose marks can be pointed at.
- ``plots.py``, ``svg.py``: drawings by matplotlib.
- ``text.py``: numbers, and tables as text.
"""

from __future__ import annotations

from experiments.report.html import (
    write_budgets_html,
    write_compared_html,
    write_html,
    write_sparsity_html,
)

__all__ = ["write_budgets_html", "write_compared_html", "write_html", "write_sparsity_html"]
