"""The losses of a limit of infinite width and depth, by levels of depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nfd_fast
from nfd_fast import arguments
from nfd_fast.limit import BACKWARD
from nfd_fast.multilevel import LimitEstimate
from nfd_fast.progress import Callback
from nfd_fast.study.choices import choice
from nfd_fast.study.measurements import TARGETS, RateProblem


@dataclass(frozen=True, kw_only=True)
class LimitConfig(RateProblem):
    """A problem whose losses in a limit are wanted, and how closely.

    Raises
    ------
    ValueError
        For choices that no limit could be computed with.
    """

    updates: int = choice(4, "SGD updates, K", int)
    targets: str = choice(
        "parity",
        "what is learned: the classes; one output that tells even (1) from odd (-1) classes; or "
        "that is to be zero, which it is already",
        str,
        options=tuple(name for name in TARGETS if name != "met"),  # there are no networks to meet
    )
    replicas: int = choice(16, "systems per depth from which their spread is first estimated", int)
    coupling: str = choice(
        "none",
        "which limit: none, Neural Feature Dynamics, or reused, that of networks with reused "
        "weights",
        str,
        options=tuple(BACKWARD),
    )
    particles: int = choice(10_000, "particles per system; what is left of it falls like 1/n", int)
    depths: tuple[int, ...] = choice(
        (4, 8, 16, 32, 64), "steps in depth, each a multiple of the one before", int, many=True
    )
    error: float = choice(1e-3, "standard error of the worst loss, extrapolated in depth", float)

    def __post_init__(self) -> None:
        super().__post_init__()
        high = arguments.MAX_INDEX
        self._set("particles", arguments.integer("particles", self.particles, high=high))
        self._set("error", arguments.real("error", self.error, positive=True))

    def estimate(self, progress: bool | Callback = False) -> LimitEstimate:
        """Compute it; see :func:`nfd_fast.multilevel_limit` for what it raises."""
        options: dict[str, Any] = {
            "batches": self.batches,
            "error": self.error,
            "particles": self.particles,
            "coupling": self.coupling,
            "statistic": "losses",
            "depths": self.depths,
            "extrapolate": True,
            "seed": self.seed,
            "pilot": self.replicas,
            "dtype": self.dtype,
            "device": self.device,
            "threads": self.threads,
            "progress": progress,
        }
        net = self.net(self.particles, 1)
        return nfd_fast.multilevel_limit(net, self.sgd, self.dataset.inputs, self.y, **options)
