"""Starts ``psla train`` in subprocesses and compares the results of runs."""

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
    """Creates a directory with a config for :func:`start`."""
    directory.mkdir(exist_ok=True)
    (directory / "config.py").write_text(CONFIG.format(data=str(data)))
    return directory


def start(
    directory: Path, *options: str, devices: int = 2, log: str = "out.txt", command: str = "train"
) -> subprocess.Popen:
    """Starts the training with a number of simulated devices; its output is appended to the file `log`."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PSLA_HUGE_PAGES": "0",
    }
    arguments = [sys.executable, "-m", "psla_jax.cli.main", command, "config.py", *options]
    with open(directory / log, "ab") as out:
        return subprocess.Popen(arguments, cwd=directory, env=environment, stdout=out, stderr=out)


def start_together(
    directory: Path,
    count: int,
    *options: str,
    devices: int = 1,
    only: Mapping[int, Sequence[str]] | None = None,
    command: str = "train",
) -> list[subprocess.Popen]:
    """Starts a distributed training of `count` processes.

    `options` are for all processes, those in `only` for the process with that index. The output of each process is
    appended to a file of its own: ``out0.txt`` and so on.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = ("--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", str(count))
    return [
        start(
            directory,
            *(*shared, "--distributed.index", str(index), *options, *(only or {}).get(index, ())),
            devices=devices,
            log=f"out{index}.txt",
            command=command,
        )
        for index in range(count)
    ]


def finish(directory: Path, *options: str) -> None:
    """Runs the training to its end."""
    assert start(directory, *options).wait(timeout=300) == 0, (directory / "out.txt").read_text()


def wait_for(run: Path, pattern: str, process: subprocess.Popen, log: Path) -> None:
    """Waits until a file in the run directory matches a glob pattern."""
    deadline = time.monotonic() + 300
    while not any(run.glob(pattern)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same(first: Path, second: Path) -> None:
    """Asserts that the finished runs of two directories have the same tables and scores, bit for bit."""
    for name in RESULTS:
        assert (first / "run" / name).read_bytes() == (second / "run" / name).read_bytes(), name
    for name in ("validation_average", "evaluation_ensemble"):
        scores = [np.load(d / "run" / "scores" / f"{name}.npz")["scores"] for d in (first, second)]
        np.testing.assert_array_equal(*scores)
