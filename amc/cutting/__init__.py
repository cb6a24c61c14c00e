"""Three ways of cutting channels out of a network, and the proof that they agree."""
