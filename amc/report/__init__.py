"""What a finished search looks like: one self-contained HTML file."""

from amc.report.html import write_budgets_html, write_html, write_sparsity_html

__all__ = ["write_budgets_html", "write_html", "write_sparsity_html"]
