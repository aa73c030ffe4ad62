"""Ctrl-C ends a long computation within a second, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.subprocess

# One layer of the wide network alone takes seconds; the ensemble has threads that can't be asked.
CASES = {
    "wide": "nfd.train(nfd.ResNet(6000, 6, 3), sgd, x, y, batches=[list(range(512))] * 50)",
    "ensemble": "nfd.train(nfd.ResNet(64, 64, 3), sgd, x, y, "
    "batches=[list(range(256))] * 1000, seed=range(64))",
    # Two tiles for eight threads, of which the first alone may ask.
    "more threads than work": "nfd.train(nfd.ResNet(256, 4, 3), sgd, np.ones((1100, 3)), "
    "np.zeros(1100), batches=[list(range(1100))] * 1000, threads=8)",
    # Blocks of so many columns that their small algebra is not small.
    "conditional": "nfd.train(nfd.ResNet(10_000, 8, 40), nfd.SGD(1e-3), "
    "np.random.default_rng(0).normal(size=(600, 40)), np.zeros(600), "
    "batches=[list(range(600))] * 3, engine='conditional')",
    "wide block": "nfd.kernels.euler_maruyama(np.random.default_rng(0).normal(size=(2000, 4000)), "
    "depth=50, seed=0, branch_factor=1e-2, all_layers=False, threads=1)",
    # Nearly dependent samples, which a team takes apart in rounds.
    "wide block of a team": "nfd.kernels.euler_maruyama("
    "np.random.default_rng(0).normal(size=(1000, 4000)).repeat(2, axis=0) + "
    "1e-5 * np.random.default_rng(1).normal(size=(2000, 4000)), "
    "depth=50, seed=0, branch_factor=1e-2, all_layers=False, threads=2)",
    "many columns": "nfd.train(nfd.ResNet(5000, 2, 1500), nfd.SGD(1e-3), "
    "np.random.default_rng(0).normal(size=(1500, 1500)), np.zeros(1500), "
    "batches=[list(range(1500))] * 3, engine='conditional', dtype='float64')",
    "many outputs": "nfd.train(nfd.ResNet(1000, 1, 3, outputs=10_000), "
    "nfd.SGD(1e-3, loss='cross_entropy'), np.ones((1000, 3)), np.arange(1000), "
    "batches=[list(range(1000))] * 3, threads=1)",
    "drawing": "nfd.initial_weights(nfd.ResNet(1000, 4, 3), 0, noise_depth=4_000_000)",
    "kernels": "nfd.initial_kernels(nfd.ResNet(1, 1, 3), x[:2], depth=10_000_000)",
    "kernels of one sample": "nfd.initial_kernels(nfd.ResNet(1, 1, 3), x[:1], depth=10_000_000)",
    "linear": "nfd.theory.linear_training(nfd.ResNet(1, 300, 3, activation='identity'), sgd, x, y, "
    "batches=[[0, 1]] * 20)",
    "step": "nfd.kernels.euler_maruyama_step(np.ones((1, 4096)), np.ones((4_000_000, 1)), seed=0, "
    "layer=1, columns=range(4_000_000))",
    "layers": "nfd.kernels.euler_maruyama(np.ones((2, 4096)), depth=10_000_000, seed=0, "
    "branch_factor=1e-4, all_layers=False)",
    "noise": "nfd.kernels.normal(0, 'hidden', 4096, columns=range(400_000))",
}


@pytest.mark.parametrize("case", CASES)
def test_interrupt_within_a_second(case: str) -> None:
    code = f"""
import numpy as np, nfd_fast as nfd
x, y, sgd = np.ones((512, 3)), np.zeros(512), nfd.SGD(1e-3)
print("ready", flush=True)
{CASES[case]}
print("finished")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(1.0)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            waited = time.monotonic() - sent
        finally:
            process.kill()
    assert "finished" not in out, "the case ended before it could be interrupted"
    assert err.strip().endswith("KeyboardInterrupt")
    # A second is the promise; the rest is for the interpreter to shut down on a busy machine.
    assert waited < 3, f"{waited:.1f} s"


AT_WORK = {
    "training": "nfd.train(nfd.ResNet(64, 4, 3), nfd.SGD(0.1), np.eye(3), np.zeros(3), "
    "batches=[[0, 1, 2]] * 1_000_000, threads={threads})",
    "progress": "nfd.train(nfd.ResNet(64, 4, 3), nfd.SGD(0.1), np.eye(3), np.zeros(3), "
    "batches=[[0, 1, 2]] * 1_000_000, threads={threads}, progress=lambda *done: time.sleep(0.03))",
    "kernels": "nfd.kernels.normal(0, 'hidden', 1_000_000, threads={threads})",
    "activations": "nfd.kernels.activation('tanh', np.ones(1_000_000))",
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("work", AT_WORK)
def test_python_ends_while_a_daemon_thread_is_at_work(work: str, threads: int) -> None:
    """Quietly, as it does where NumPy is at work there."""
    code = f"""
import threading, time
import numpy as np, nfd_fast as nfd
started = threading.Event()
def run():
    while True:
        started.set()
        {AT_WORK[work].format(threads=threads)}
threading.Thread(target=run, daemon=True).start()
started.wait()
time.sleep(0.3)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
