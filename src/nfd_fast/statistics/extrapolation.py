"""Extrapolation of runs on shared noise to infinite depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nfd_fast import arguments
from nfd_fast.observables import LAYERLESS
from nfd_fast.results import Run
from nfd_fast.statistics.intervals import Intervals, mean_intervals, replicas
from nfd_fast.statistics.pairing import require_shared_noise


def extrapolate(
    runs: Sequence[Run], statistic: str = "outputs", confidence: float = 0.95
) -> Intervals:
    """Extrapolate what runs of different depth recorded to L = ∞, on shared noise.

    Parameters
    ----------
    runs : sequence of Run
        At least 2, of networks that differ in depth alone, with the same seeds, batches and
        ``noise_depth``.
    statistic : str
        A recorded array without a layer axis: ``"outputs"``, ``"losses"`` or an accumulated
        coupling.
    confidence : float
        Coverage, below 1.

    Returns
    -------
    Intervals
        Of the array's shape without the replica axis: mean over replicas and Student t interval
        of each replica's extrapolation. It is the interval of the extrapolated mean; what the
        extrapolation leaves, of the next order in 1/L, is not in it.

    Raises
    ------
    ValueError
        If the runs are not of that kind, or did not all record the statistic.

    Notes
    -----
    L. F. Richardson, Phil. Trans. R. Soc. A 210 (1911) 307: the value at 0 of the polynomial in
    1/L through all depths, Σ_j w_j f_j with w_j = Π_{i≠j} L_j/(L_j − L_i); 2 f_{2L} − f_L for two
    depths L and 2L. J depths remove the powers 1 … J−1 of 1/L, at the cost of weights that grow
    with J. Means over replicas are smooth in 1/L; single paths are not, and the shared noise only
    makes the weights' magnification of the spread harmless.
    """
    if not isinstance(runs, Sequence) or len(runs) < 2:
        raise ValueError(
            f"runs must be a sequence of at least 2 runs, got {arguments.describe(runs)}"
        )
    arguments.option("statistic", statistic, LAYERLESS)
    named = {f"runs[{i}]": run for i, run in enumerate(runs)}
    for name, run in named.items():
        arguments.instance(name, run, Run)
        if statistic not in run.observables:
            raise ValueError(f"{name} must have recorded {statistic!r}")
    depths = [run.net.depth for run in runs]
    if len(set(depths)) < len(depths):
        raise ValueError(f"runs must have distinct depths, got {depths}")
    require_shared_noise(named)
    weights = [math.prod(own / (own - other) for other in depths if other != own) for own in depths]
    rows = sum(
        weight * replicas(run, np.asarray(run.observables[statistic]))
        for weight, run in zip(weights, runs, strict=True)
    )
    return mean_intervals(rows, confidence)
