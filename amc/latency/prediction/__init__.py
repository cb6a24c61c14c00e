"""A latency model: measured layers, and the predicted latency of whole networks."""
