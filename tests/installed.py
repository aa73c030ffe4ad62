"""What an installed wheel does in an environment with nothing but what it depends on."""

from __future__ import annotations

import math

import nfd_fast as nfd
from nfd_fast import cython_api, statistics

NET, SGD = nfd.ResNet(width=33, depth=3, inputs=2), nfd.SGD(0.1)
for engine in ("dense", "conditional"):
    for dtype in ("float32", "float64"):
        run = nfd.train(NET, SGD, [[1, 2], [3, 4]], [0, 1], batches=[[0, 1]] * 3, seed=range(2),
                        engine=engine, dtype=dtype)  # fmt: skip
        assert run.losses.shape == (2, 4)
        assert (run.losses[:, -1] < run.losses[:, 0]).all()
assert math.isclose(nfd.initial_kernels(NET, [[1, 0]], depth=1).features[0, 0, 0], 0.5)
assert len(cython_api.Stream) == len(nfd.STREAMS)
assert issubclass(statistics.Rate, tuple)
for name, value in nfd.build_info().items():
    print(name, value)
