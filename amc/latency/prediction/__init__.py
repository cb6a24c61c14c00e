"""A latency model: measured layers, and what whole networks take."""
