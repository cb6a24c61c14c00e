"""The command line around a job: overrides that are remembered, locks, many jobs.

- ``command.py``: one call of ``amc``, around Hydra.
- ``overrides.py``: overrides and Hydra's options, as they are typed.
- ``memory/``: those that a run folder remembers.
- ``foreign.py``: what those of another user may be.
- ``tidy.py``: links and temporary files in a run folder.
- ``lock.py``: one process at a time in a run folder.
- ``multirun.py``: the jobs of ``amc -m`` that fail.
- ``messages.py``: errors as one line.
- ``signals.py``: signals that end a command, kept out of imports.
- ``log.py``: what is printed, in the run folder's ``amc.log`` as well.
- ``model_source.py``: any network's name as a value of ``model``.
- ``quick_hydra.py``: workarounds for Hydra's slow start.
"""
