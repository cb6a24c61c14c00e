"""The catalogue of faults: what is tried against the command, and whether it did what is promised.

- ``catalogue.py``: the command line, and the table of what was tried.
- ``bench.py``: a small finished run, and commands on copies of it.
- ``corruption.py``: every file of a run, damaged in every way.
- ``hostile.py``: run folders of a stranger, checkpoints and pictures.
- ``environment.py``: signals, closed pipes, odd paths, a disk that is full.
- ``crashes.py``: jobs broken off before each change of a file, and the same command again.
- ``soak.py``: memory, time and files of a long search.
- ``facts.py``: what a run folder holds, for comparison.
"""
