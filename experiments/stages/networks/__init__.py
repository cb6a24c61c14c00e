"""Stages that train, cut and judge networks."""
