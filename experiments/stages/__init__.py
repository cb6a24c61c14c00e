"""The stages of a run: each is a module with a function ``run(run) -> facts``.

- ``pipeline.py``: runs stages one after the other and records their facts.
- ``measuring``: stages that measure what decisions on widths rest on.
- ``policies``: stages that decide widths.
- ``networks``: stages that train, prune or evaluate a network.
- ``devices``: stages that export networks and measure them outside of PyTorch.
- ``report.py``: the last stage, which collects all results of a run.
"""
