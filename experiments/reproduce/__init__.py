"""Results of many runs as tables and figures (``python -m experiments.reproduce``)."""
