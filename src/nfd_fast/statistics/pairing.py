"""When runs may be compared path by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nfd_fast import arguments
from nfd_fast.results import Run


def require_shared_noise(runs: Mapping[str, Run]) -> None:
    """Raise ValueError unless named runs differ in depth alone and share their noise.

    The engines don't share their paths.
    """
    (first, run), *others = runs.items()
    for second, other in others:
        for what, ours, theirs in (
            ("net but for the depth", replace(run.net, depth=1), replace(other.net, depth=1)),
            ("sgd", run.sgd, other.sgd),
            ("seeds", run.seeds, other.seeds),
            ("backward", run.backward, other.backward),
            ("engine", run.engine, other.engine),
            ("noise_depth", run.noise_depth, other.noise_depth),
            ("outputs' shape", run.outputs.shape, other.outputs.shape),
            ("data in their batches", run.data, other.data),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{first} and {second} must have the same {what}, got "
                    f"{arguments.describe(ours)} and {arguments.describe(theirs)}"
                )
