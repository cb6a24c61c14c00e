"""The configuration: its schema, and the objects that its names stand for.

- ``schema.py``: the typed configuration, registered with Hydra; ``sections/``: its sections.
- ``derive.py``: sections derived from the settings that they fill.
- ``stages.py``: names and order of the stages.
- ``budgets.py``: the budgets of a job: one, or a list.
- ``arena.py``: the problem of one search: its environments, and what agents may know of it.
- ``agents.py``: ``AGENTS``, and an agent with its settings bound.
- ``searching.py``: the search of an agent, which may be the user's own.
- ``presets.py``: the settings of ``conf/agent/NAME.yaml`` without Hydra, for the library.
- ``unused.py``: remarks on given settings that nothing in the job reads.
- ``unused_by_agents.py``: remarks on settings that the chosen agent does not use.
- ``runtimes.py``: runtimes with the settings of other devices.
"""
