"""Runtimes on another device."""
