"""Composition: reads the configuration, runs stages, writes the run folder."""
