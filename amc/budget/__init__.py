"""Budgets and allocations: pure numbers, no network and no torch."""
