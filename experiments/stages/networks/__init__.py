"""Stages that train, cut and judge networks.

What their trainings share: ``fitting.py`` runs one, ``teaching.py`` finds the teacher, ``team.py`` the processes.
"""
