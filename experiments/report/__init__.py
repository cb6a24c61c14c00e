"""Reports: tables of the terminal, SVG plots and HTML pages."""

from __future__ import annotations

from experiments.report.html import write_budgets_html, write_html, write_sparsity_html

__all__ = ["write_budgets_html", "write_html", "write_sparsity_html"]
