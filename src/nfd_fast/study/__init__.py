"""Ensembles over a grid of networks: run, stored as they finish, compared, drawn.

``grid`` says what to run, ``runner`` runs it by ``cells``, which runs any grid, in the processes of
``processes``; ``store`` keeps it, ``report`` and ``plots`` show it.
"""

from nfd_fast.study.cells import StudyInterrupted, Work, WorkerError, run_cells
from nfd_fast.study.grid import Cell, StudyConfig
from nfd_fast.study.runner import Study, run_study
from nfd_fast.study.store import Store, StoreError

__all__ = [
    "Cell",
    "Store",
    "StoreError",
    "Study",
    "StudyConfig",
    "StudyInterrupted",
    "Work",
    "WorkerError",
    "run_cells",
    "run_study",
]
