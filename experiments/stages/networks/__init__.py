"""Stages that train, cut and judge networks.

What trainings share: ``fitting.py`` runs one, ``teaching.py`` finds the teacher, ``team.py`` the processes,
``crew.py`` those of torchrun.
"""
