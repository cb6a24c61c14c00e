"""Interleaved timing of networks, and their peak memory."""
