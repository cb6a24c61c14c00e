"""Evaluations of many candidates at the same time: worker processes, on this machine or in a Ray cluster."""
