"""``psla train`` as processes of their own, for tests of what becomes of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

CONFIG = """
import dataclasses, pathlib, sounds
config = sounds.config(pathlib.Path({data!r}), pathlib.Path("run"))
config = dataclasses.replace(config, checkpoint_every=2)
"""
RESULTS = ("result.csv", "best_single_result.csv", "wa_result.csv", "ensemble_result.csv", "summary.json")


def prepare(directory: Path, data: Path) -> Path:
    """A directory with a config for :func:`start`."""
    directory.mkdir(exist_ok=True)
    (directory / "config.py").write_text(CONFIG.format(data=str(data)))
    return directory


def start(directory: Path, *options: str, devices: int = 2, log: str = "out.txt") -> subprocess.Popen:
    """Begins the training, with so many simulated devices; what it says goes to a file."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PSLA_HUGE_PAGES": "0",
    }
    command = [sys.executable, "-m", "psla_jax.cli", "train", "config.py", *options]
    with open(directory / log, "ab") as out:
        return subprocess.Popen(command, cwd=directory, env=environment, stdout=out, stderr=out)


def start_together(
    directory: Path, count: int, *options: str, devices: int = 1, only: Mapping[int, Sequence[str]] | None = None
) -> list[subprocess.Popen]:
    """Begins the training in several processes, with options for all and for one `only`.

    Each has a file for what it says, ``out0.txt`` and so on.
    """
    own = only or {}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    where = ("--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", str(count))
    return [
        start(
            directory,
            *(*where, "--distributed.index", str(index), *options, *own.get(index, ())),
            devices=devices,
            log=f"out{index}.txt",
        )
        for index in range(count)
    ]


def finish(directory: Path, *options: str) -> None:
    """Trains to the end."""
    assert start(directory, *options).wait(timeout=300) == 0, (directory / "out.txt").read_text()


def wait_for(run: Path, sign: str, process: subprocess.Popen, log: Path) -> None:
    """Waits until a file that matches `sign` is in the run directory."""
    deadline = time.monotonic() + 300
    while not any(run.glob(sign)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same(one: Path, other: Path) -> None:
    """Two directories in which runs have ended: their tables and scores are the same, bit for bit."""
    for name in RESULTS:
        assert (one / "run" / name).read_bytes() == (other / "run" / name).read_bytes(), name
    for kind in ("validation_average", "evaluation_ensemble"):
        scores = [np.load(d / "run" / "scores" / f"{kind}.npz")["scores"] for d in (one, other)]
        np.testing.assert_array_equal(*scores)
