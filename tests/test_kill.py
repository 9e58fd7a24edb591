"""A run killed with SIGKILL, wherever it is, ends with the bytes of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sounds

CONFIG = """
import dataclasses, pathlib, sounds
from psla_jax.config import DataConfig
config = sounds.config(pathlib.Path({data!r}), pathlib.Path("run"))
config = dataclasses.replace(config, checkpoint_every=2)
"""
RESULTS = ("result.csv", "best_single_result.csv", "wa_result.csv", "ensemble_result.csv", "summary.json")


def start(directory: Path) -> subprocess.Popen:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "psla_jax.cli", "train", "config.py"]
    log = open(directory / "out.txt", "ab")  # noqa: SIM115 - the process keeps it open
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT)


def prepare(directory: Path, data: Path) -> Path:
    directory.mkdir()
    (directory / "config.py").write_text(CONFIG.format(data=str(data)))
    return directory


def finish(directory: Path) -> None:
    assert start(directory).wait(timeout=300) == 0, (directory / "out.txt").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    directory = prepare(root / "alone", sounds.make(root / "sounds"))
    finish(directory)
    return directory


def appeared(run: Path, sign: str) -> bool:
    return any(run.glob(sign))


@pytest.mark.parametrize(
    "sign",
    [
        "checkpoints/2*",  # while a step's checkpoint is written
        "scores/validation_epoch_001.npz",  # while an epoch is scored
        "models/plain_average",  # while weights are averaged
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_been(alone, sign):
    directory = prepare(alone.parent / sign.replace("/", "_").replace("*", ""), alone.parent / "sounds")
    process = start(directory)
    deadline = time.monotonic() + 300
    while not appeared(directory / "run", sign):
        assert process.poll() is None, (directory / "out.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (directory / "run" / "summary.json").exists()
    finish(directory)
    for name in RESULTS:
        assert (directory / "run" / name).read_bytes() == (alone / "run" / name).read_bytes(), name
    for kind in ("validation_average", "evaluation_ensemble"):
        scores = [np.load(d / "run" / "scores" / f"{kind}.npz")["scores"] for d in (directory, alone)]
        np.testing.assert_array_equal(*scores)
