"""Finds the BLAS library that the compiled module was linked to."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path


def load() -> None:
    """Load the library of the ``scipy-openblas32`` wheel, wherever that is installed.

    The compiled module looks for it beside this package; a virtual environment on top of another
    installation has it elsewhere, and a library that is already in memory is found by its name.
    Nothing happens when the wheel is absent: then a system CBLAS was chosen at build time.
    (Importing ``scipy_openblas32`` would do the same, but takes 0.1 s.)
    """
    spec = find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("lib/*scipy_openblas.*")):
        if library.suffix in (".so", ".dylib", ".dll"):
            ctypes.CDLL(str(library))
