"""Words that follow ``amc`` and are no settings, such as ``amc list models``.

- ``words.py``: the words by name; which one a command line begins with.
- ``lists.py``: ``amc list`` and ``amc help``, what can be chosen.
- ``installed.py``: ``amc check``, what is installed and what runs here.
- ``comparison.py``: ``amc compare``, several runs on one page.
- ``options.py``: the keys of the configuration as tables, for docs/options.md.
"""
