"""Tables and figures of many runs: ``python -m experiments.reproduce RUNS --out experiments/RESULTS.md``.

- ``runs.py``, ``sparse_runs.py``: results, read from run folders.
- ``records.py``: results of runs whose folders may be gone.
- ``tables.py``, ``figures.py``: one table and one figure for each job.
- ``tuned.py``: the table of fine-tuned networks, with those of other tools.
- ``origins.py``, ``paper.py``: where figures come from, and the paper's own results.
- ``front_page.py``: the picture of the README.
"""
