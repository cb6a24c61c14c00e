"""Tests of the stages that decide widths, or measure what decides them."""
