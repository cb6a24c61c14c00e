"""One run: its folder, its files, and the objects that its stages share.

- ``folder.py``: ``RunFolder``, the names of all files, and the records of stages.
- ``problem``: the network, the data, the evaluator and the latency, which all budgets of a job share.
- ``records.py``: ``Records``, what the folder tells about the dense network and the strategy of a run.
- ``reports.py``: whether a report tells of the networks that a run has now.
- ``run.py``: ``Run``, a configuration, a folder and one budget on a problem.
- ``values.py``: the checks of what the configuration alone decides.
- ``check.py``: the checks of network, data and budget before any work is done.
- ``episodes.py``: ``search.jsonl``, one line an episode; what a search has learned for others.
- ``held_out.py``: the best networks of a search, judged on images that it does not see.
- ``fronts.py``: ``pareto.json`` and its strategies.
- ``proxies.py``: how well scores predict others, over networks that a search might compare.
- ``provenance.py``: commit, versions, device and data of a result.
- ``room.py``: whether the allowed widths leave a search room.
- ``trackers.py``: wandb and TensorBoard.
"""
