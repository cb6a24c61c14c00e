"""Tables and figures of many runs: ``python -m experiments.reproduce RUNS --out experiments/RESULTS.md``.

- ``runs.py``, ``sparse_runs.py``: results, read from run folders.
- ``commands.py``, ``problem.py``: what a command tells, and what a search was asked for.
- ``records.py``: results of runs whose folders may be gone.
- ``tables.py``, ``figures.py``: one table and one figure for each job.
- ``tuned.py``, ``rivals.py``: the table of fine-tuned networks, and the rows of other tools.
- ``origins.py``, ``paper.py``: where figures come from, and the paper's own results.
- ``front_page.py``: the picture of the README.
"""
