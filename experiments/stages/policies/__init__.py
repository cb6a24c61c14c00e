"""Stages that decide widths, or measure what decides them."""
