"""One file a runtime: from a network to its file to a call that runs it."""
