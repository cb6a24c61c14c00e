"""Scripts to start from, ``python -m experiments.examples.NAME``, and the notebook ``own_network.ipynb``."""
