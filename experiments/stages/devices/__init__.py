"""Stages that leave PyTorch: files, latency, a fixed load."""
