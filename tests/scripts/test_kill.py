"""Runs that are killed or terminated and then restarted give the same results, bit for bit, as undisturbed ones."""

from __future__ import annotations

import importlib
import operator
import os
import signal
from pathlib import Path

import kill
import pytest
from starting import assert_same, finish, prepare, start, wait_for


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("checkpoints/2*", ()),  # while a checkpoint within an epoch is written
        ("scores/validation_epoch_001.npz", ("--data.workers", "1")),  # after an epoch is scored
        ("models/plain_average", ()),  # while weights are averaged
    ],
)
def test_a_killed_run_resumes_exactly(alone: Path, pattern: str, options: tuple[str, ...]) -> None:
    directory = prepare(alone.parent / pattern.replace("/", "_").replace("*", ""), alone.parent / "sounds")
    process = start(directory, *options)
    wait_for(directory / "run", pattern, process, directory / "out.txt")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (directory / "run" / "summary.json").exists()
    finish(directory)
    assert_same(directory, alone)


def test_a_terminated_run_reports_what_it_saved_and_locks_its_directory(alone: Path) -> None:
    directory = prepare(alone.parent / "terminated", alone.parent / "sounds")
    process = start(directory)
    wait_for(directory / "run", "checkpoints/2*", process, directory / "out.txt")
    os.kill(process.pid, signal.SIGSTOP)  # The stopped process keeps its lock on the directory.
    second = start(directory, log="second.txt")
    assert second.wait(timeout=120) == 2
    output = (directory / "second.txt").read_text()
    assert f"run is in use by another training (process {process.pid} on " in output
    assert "Traceback" not in output
    os.kill(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert "stopped by SIGTERM; " in (directory / "out.txt").read_text().replace("\n", " ")
    finish(directory)
    assert_same(directory, alone)


def test_the_kill_script_names_functions_of_the_training() -> None:
    for phase, module, name in kill.FUNCTIONS:
        assert phase in kill.PHASES
        assert callable(operator.attrgetter(name)(importlib.import_module(f"psla_jax.training.{module}")))
