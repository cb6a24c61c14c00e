"""The stages of a run: each is a module with a function ``run(run) -> facts``."""
