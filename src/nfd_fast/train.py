"""The front door: checks what is asked, chooses the engine, returns the result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from nfd_fast import _core, arguments, checkpoint, devices, engines, memory, observables
from nfd_fast import progress as progress_line
from nfd_fast.exceptions import DivergenceError
from nfd_fast.model import BACKWARDS, SGD, ResNet, Weights
from nfd_fast.problem import (
    MAX_BLAS_SIZE,
    Problem,
    answers,
    batch_indices,
    checked_seeds,
    given_weights,
    require_finite_hidden,
)
from nfd_fast.results import Run
from nfd_fast.task import QUANTITIES
from nfd_fast.threads import thread_count


def train(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    seed: int | Iterable[int] = 0,
    backward: str = "reused",
    engine: str = "auto",
    noise_depth: int | None = None,
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    threads: int | None = None,
    weights: Weights | None = None,
    overwrite_weights: bool = False,
    record: Sequence[str] = ("outputs",),
    record_every: int = 1,
    progress: bool | progress_line.Callback = False,
    keep_state: bool = False,
) -> Run:
    """Train a network, or an ensemble of them, by SGD.

    Parameters
    ----------
    net, sgd : ResNet, SGD
        What to train and how.
    x : (S, d) array
        Inputs of all samples; converted to ``dtype``. Arrays may be any that
        :mod:`nfd_fast.kernels` reads, those of PyTorch and JAX among them.
    y : (S,) or (S, C) array
        Real targets for ``"mse"``, integer labels 0 … C−1 of shape (S,) for ``"cross_entropy"``.
    batches : (K, B) array of int
        Indices into the samples: row k is the batch of update k. K, B ≥ 1.
    seed : int or iterable of int
        Seed in 0 … 2⁶⁴−1 of the initial weights. Several distinct seeds train an ensemble whose
        replica r is bit for bit the single run with ``seed[r]``.
    backward : str
        ``"reused"``: adjoints flow through Wᵀ; ``"decoupled"``: through an independent W'ᵀ that
        receives the same updates.
    engine : str
        ``"dense"`` stores the weights. ``"conditional"`` never forms them: it draws what they
        answer, exactly in law at every width, in memory and time linear in n·L·(K+1)·B; the two
        agree in law, not path by path (they share W_in and V). A feature or adjoint whose distance
        from earlier ones is below its own rounding (3e-8 of its length in float32; 1e-10 in
        float64) has their answers alone. ``"auto"`` takes dense if ``weights`` are given, else the
        one expected to be faster (conditional while n is a few times (K+1)B), or the other where
        that one doesn't fit the memory. The choice is in the result.
    noise_depth : int, optional
        A multiple r·depth: each layer's initial weights are the normalised sum of r fine layers,
        so that networks of different depth share one Brownian path. Default: ``depth``.
    dtype : {"float32", "float64"}
        Type of weights, features and adjoints. Everything returned is float64.
    device : {"cpu", "cuda"}
        Where to run: on the processor, or on the first GPU that CUDA sees. The two share their
        noise, and agree to rounding (the conditional engine: while its ranks do). Results are
        returned in the memory of the processor either way.
    threads : int, optional
        Results don't depend on it. Default: the processors of this process (or OMP_NUM_THREADS).
        Of no use on a GPU.
    weights : Weights, optional
        Start from these instead of the seed's, bit for bit; their dtype must be ``dtype``.
    overwrite_weights : bool
        Train ``weights`` in place instead of leaving them as they are; saves a copy.
    record : sequence of str
        Observables besides outputs and losses: ``"features"`` (K+1, L+1, B, n), ``"adjoints"``
        (K, L+1, B, n), ``"feature_kernels"`` H_lᵀH_l/n (K+1, L+1, B, B), ``"adjoint_kernels"``
        G_lᵀG_l/n (K, L+1, B, B), ``"feature_movement"`` (L+1,), the mean of (H_l at row K − H_l at
        row 0)² over neurons and batch 0, ``"min_eigenvalues"`` (see :class:`MinEigenvalues`).
        Conditional engine only: ``"ranks"`` (see :class:`Ranks`) and, with reused weights,
        ``"coupling_per_layer"`` (K+1, L), the mean over neurons and batch of (β D_l)², where D_l is
        the part of W_l φ(H_{l-1}) along earlier adjoints, ``"coupling_accumulated"`` (K+1,) that
        of (Σ_l β D_l)², and their mirror images ``"backward_coupling_per_layer"`` (K, L) and
        ``"backward_coupling_accumulated"`` (K,), along features and before φ'.
    record_every : int
        A divisor of the depth: features and adjoints are recorded of layers 0, record_every, … L
        only, and their axis of length L+1 has L/record_every + 1 entries.
    progress : bool or callable
        True shows a line on stderr; a function is called as ``progress(done, total)`` now and then
        with the number of replicas times passes done, from the calling thread.
    keep_state : bool
        Keep the memory of the trained network with the result, for :meth:`Run.save`; a single run.
        Given ``weights`` are copied, also those that don't move, so it goes without
        ``overwrite_weights``. Saving takes that memory once more while it writes; ``"cpu"`` only.

    Returns
    -------
    Run
        Outputs, losses and observables; with several seeds a leading replica axis on each. Its
        arrays are NumPy's; :func:`nfd_fast.to_namespace` makes them another library's.

    Raises
    ------
    ValueError
        For anything that doesn't fit together, before any work starts.
    MemoryError
        If the estimate exceeds the available memory, before allocating.
    DeviceError
        If ``device="cuda"`` can't be had: the text says whether this build has no such module, the
        machine no NVIDIA driver, or no GPU. Nothing falls back. Or if CUDA fails.
    DivergenceError
        If a number stopped being finite, after all replicas have ended; ``.run`` has what was
        recorded.

    Notes
    -----
    DESIGN §1 (depth-μP network, adjoints, SGD), §4 (noise).

    Examples
    --------
    >>> import numpy as np, nfd_fast as nfd
    >>> net = nfd.ResNet(width=64, depth=8, inputs=3)
    >>> x, y = np.eye(3), np.array([1.0, 0.0, -1.0])
    >>> run = nfd.train(net, nfd.SGD(0.5), x, y, batches=[[0, 1, 2]] * 20, seed=range(4))
    >>> run.losses.shape
    (4, 21)
    """
    arguments.instance("net", net, ResNet)
    arguments.instance("sgd", sgd, SGD)
    arguments.option("backward", backward, BACKWARDS)
    arguments.option("engine", engine, engines.ENGINES)
    device = devices.checked(device)
    name = arguments.dtype_name(dtype)
    inputs = arguments.finite_array("x", x, ("samples", net.inputs), name)
    if not len(inputs):
        raise ValueError("x must hold at least one sample, got none")
    targets, labels = answers(net, sgd, y, len(inputs))
    seeds, ensemble = checked_seeds(seed)
    fine = arguments.fine_layers(net.depth, noise_depth)
    overwrite = arguments.flag("overwrite_weights", overwrite_weights)
    every = arguments.integer("record_every", record_every)
    if net.depth % every:
        raise ValueError(f"record_every must divide the depth {net.depth}, got {every}")
    keep_state = arguments.flag("keep_state", keep_state)
    if keep_state and ensemble:
        raise ValueError("keep_state needs a single seed, got several")
    if keep_state and device != "cpu":
        raise ValueError(f"keep_state needs device='cpu', got {device!r}")
    if weights is not None:
        if ensemble:
            raise ValueError("weights start a single network; got several seeds with them")
        if noise_depth is not None:
            raise ValueError("noise_depth describes weights drawn from the seed; got weights too")
        weights = given_weights(net, weights, backward, name, overwrite)
        inputs = inputs if not overwrite else inputs.copy()  # they may be the weights
        targets = targets if targets is None or not overwrite else targets.copy()
        if overwrite and keep_state:
            raise ValueError(
                "keep_state keeps weights of its own and overwrite_weights=True trains yours; "
                "choose one"
            )
    elif overwrite:
        raise ValueError("overwrite_weights needs weights to overwrite, got weights=None")
    index = batch_indices(batches, len(inputs))
    for name_, size in (("width", net.width), ("inputs", net.inputs), ("batch", index.shape[1])):
        if size > MAX_BLAS_SIZE:
            raise ValueError(f"{name_} must be at most 2**31 - 1 to train, got {size}")
    problem = Problem(
        net=net,
        sgd=sgd,
        x=inputs,
        targets=targets,
        labels=labels,
        batches=index,
        seeds=seeds,
        backward=backward,
        fine=fine,
        dtype=name,
        threads=thread_count(threads),
        weights=weights,
        overwrite_weights=overwrite,
        record=observables.names(record),
        device=device,
        record_every=every,
        progress=progress_line.callback(progress),
        keep_state=keep_state,
    )
    return _run(engines.choose(engine, problem), problem, ensemble)


def resume(
    path: str | os.PathLike[str],
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    device: str = "cpu",
    threads: int | None = None,
    record: Sequence[str] = ("outputs",),
    progress: bool | progress_line.Callback = False,
    keep_state: bool = False,
) -> Run:
    """Continue a run that was saved by :meth:`Run.save`.

    The rows are bit for bit those that the uninterrupted run would have had from there on; the
    last row is batch 0 of the whole run again.

    Parameters
    ----------
    path : path
        A file of :meth:`Run.save`; it says what network, optimiser, engine and dtype go on.
    x, y : arrays
        The same data as before.
    batches : (K, B) array of int
        The next K batches, of as many samples as before.
    device, threads, record, progress, keep_state
        As in :func:`train`, but for ``device``, which must be ``"cpu"``. ``"feature_movement"``
        (against row 0 of the whole run) and the couplings can be recorded if the saved run
        recorded them.

    Returns
    -------
    Run
        K+1 rows.

    Raises
    ------
    ValueError
        If the file is damaged or foreign, or if something doesn't fit it.
    OSError
        If the file can't be read.
    MemoryError, DivergenceError
        As :func:`train`.
    """
    start = checkpoint.read(arguments.file_path("path", path))
    if devices.checked(device) != "cpu":
        raise ValueError(f"device must be 'cpu' to continue a run, got {device!r}")
    net, sgd, name, expected = start.net, start.sgd, start.dtype, len(start.first_batch)
    keep_state = arguments.flag("keep_state", keep_state)
    inputs = arguments.finite_array("x", x, ("samples", net.inputs), name)
    targets, labels = answers(net, sgd, y, len(inputs))
    if checkpoint.digest((inputs, targets, labels)) != start.data:
        raise ValueError("x and y must be the data of the saved run, got others")
    if start.first_batch.max() >= len(inputs) or start.fine * net.depth > arguments.MAX_NOISE_DEPTH:
        raise ValueError(f"{start.path} is damaged: in its manifest, first_batch or fine")
    index = batch_indices(batches, len(inputs))
    if index.shape[1] != expected:
        raise ValueError(f"batches must have {expected} samples each, got {index.shape[1]}")
    if (start.updates + len(index) + 1) * expected > arguments.MAX_INDEX:
        raise ValueError("batches must leave (updates + 1) * batch of at most 2**32 in all")
    problem = Problem(
        net=net,
        sgd=sgd,
        x=inputs,
        targets=targets,
        labels=labels,
        batches=index,
        seeds=(start.seed,),
        backward=start.backward,
        fine=start.fine,
        dtype=name,
        threads=thread_count(threads),
        record=observables.names(record),
        record_every=1,
        progress=progress_line.callback(progress),
        keep_state=keep_state,
        start=start,
    )
    engines.choose(start.engine, problem)
    needed = dict.fromkeys(observables.COUPLINGS, "feature_coupling")
    needed["feature_movement"] = "first_features"
    for observable, array in needed.items():
        if observable in problem.record and array not in start.arrays:
            raise ValueError(f"record {observable!r} must have been recorded by the saved run too")
    return _run(start.engine, problem, ensemble=False)


def _run(engine: str, problem: Problem, ensemble: bool) -> Run:
    """Train a checked problem."""
    chosen = engines.MODULES[engine]
    compiled = chosen.compiled(problem)
    # Of the data as they are now: the caller may change them before saving.
    data = (
        checkpoint.digest((problem.x, problem.targets, problem.labels))
        if problem.keep_state
        else ""
    )
    records, divergences = chosen.run(problem, compiled)

    def save(path: Path) -> None:
        done = 0 if problem.start is None else problem.start.updates
        manifest = {
            "package": _core.VERSION,
            "net": asdict(problem.net),
            "sgd": asdict(problem.sgd),
            "engine": engine,
            "backward": problem.backward,
            "seed": problem.seeds[0],
            "dtype": problem.dtype,
            "fine": problem.fine,
            "updates": done + len(problem.batches),
            "first_batch": problem.last_batch.tolist(),
            "data": data,
        }
        memory.require(
            compiled.bytes(_core.Engine[engine], 1, False),
            "free some memory: a state is copied once while it is saved",
        )
        checkpoint.write(path, manifest, compiled.state())

    def save_diverged(path: Path) -> None:
        raise ValueError("this run diverged, which leaves no state to save")

    failed = np.flatnonzero(divergences[:, 2])
    run = Run(
        outputs=records["outputs"] if ensemble else records["outputs"][0],
        losses=records["losses"] if ensemble else records["losses"][0],
        observables=observables.observed(problem.record, records, ensemble),
        engine=engine,
        net=problem.net,
        sgd=problem.sgd,
        seeds=problem.seeds,
        ensemble=ensemble,
        backward=problem.backward,
        dtype=problem.dtype,
        noise_depth=problem.net.depth * problem.fine,
        record_every=problem.record_every,
        data=problem.seen(),
        device=problem.device,
        _save=None if not problem.keep_state else save if not failed.size else save_diverged,
    )
    if failed.size:
        update, layer, quantity = (int(v) for v in divergences[failed[0]])
        # Where weights were overwritten, adjoints that overflow may have moved some of them.
        moved = problem.overwrite_weights and QUANTITIES[quantity] == "adjoints"
        if update == 0 and not moved:
            require_finite_hidden(problem.weights)
        if problem.start is not None:
            update += problem.start.updates
        raise DivergenceError(update, layer, QUANTITIES[quantity], problem.seeds[failed[0]], run)
    return run
