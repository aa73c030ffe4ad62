"""Ensembles over a grid of networks: run, stored as they finish, compared, drawn.

``grid`` says what to run, ``runner`` runs it, ``store`` keeps it, ``report`` and ``plots`` show it.
"""

from nfd_fast.study.grid import Cell, StudyConfig
from nfd_fast.study.runner import StudyInterrupted, run_study
from nfd_fast.study.store import Store, StoreError

__all__ = [
    "Cell",
    "Store",
    "StoreError",
    "StudyConfig",
    "StudyInterrupted",
    "run_study",
]
