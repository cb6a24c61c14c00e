"""What a run folder remembers of its commands.

- ``content.py``: the file ``overrides.json``.
- ``signature.py``: who wrote it.
- ``identity.py``: when it is written, and when it stays as it was.
- ``remembered.py``: its settings in the next command, and what is refused.
"""
