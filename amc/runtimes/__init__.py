"""One file a runtime: it converts a network, loads it, and runs it."""
