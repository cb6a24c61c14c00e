"""Which networks can be pruned: the proof of exactness over whole model zoos."""
