"""Results of a study with known gaps, made without training."""

from __future__ import annotations

import numpy as np

from nfd_fast import data
from nfd_fast.study.grid import StudyConfig
from nfd_fast.study.runner import Study

REPLICAS, UPDATES = 6, 20


def make_result(tmp_path, *, gaps=(0.2, 0.0), replicas=REPLICAS, diverged=()):
    """Decaying losses of two depths, with a known gap each and a little noise.

    ``diverged``: (parameterization, depth, backward, replica) that diverged at update 10.
    """
    config = StudyConfig(
        depths=(2, 4),
        parameterizations=("mlp", "depth_mup"),
        updates=UPDATES,
        replicas=replicas,
        window=5,
        smooth=3,
        output=tmp_path,
    )
    rng = np.random.default_rng(0)
    losses = {}
    for name in config.parameterizations:
        for depth, gap in zip(config.depths, gaps, strict=True):
            noise = rng.normal(1, 0.02, size=(replicas, UPDATES + 1))
            base = np.exp(-np.arange(UPDATES + 1) / 10) * noise
            more = rng.normal(1, 0.02, size=(replicas, UPDATES + 1))
            losses[name, depth, "reused"] = base
            losses[name, depth, "decoupled"] = base * (1 + gap) * more
    for name, depth, backward, replica in diverged:
        losses[name, depth, backward][replica, 10:] = np.nan
    dataset = data.DataSet("digits", "some digits", np.zeros((1, 1)), np.zeros(1, np.int64), 10)
    return Study(config, losses, dataset, 8, 1.0)
