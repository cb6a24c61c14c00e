"""What a training costs.

- ``finetune.py``: teachers, hints, averages and cheaper methods.
- ``processes.py``: images a second of several processes beside one.
"""
