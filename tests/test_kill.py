"""A run killed with SIGKILL, wherever it is, ends with the bytes of one that was left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from starting import assert_same, finish, prepare, start, wait_for


@pytest.mark.parametrize(
    ("sign", "options"),
    [
        ("checkpoints/2*", ()),  # while a step's checkpoint is written
        ("scores/validation_epoch_001.npz", ("--data.workers", "1")),  # after an epoch is scored
        ("models/plain_average", ()),  # while weights are averaged
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_been(alone: Path, sign: str, options: tuple[str, ...]) -> None:
    directory = prepare(alone.parent / sign.replace("/", "_").replace("*", ""), alone.parent / "sounds")
    process = start(directory, *options)
    wait_for(directory / "run", sign, process, directory / "out.txt")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (directory / "run" / "summary.json").exists()
    finish(directory)
    assert_same(directory, alone)


def test_a_run_that_is_told_to_end_says_what_it_saved_and_a_second_run_waits_its_turn(alone: Path) -> None:
    directory = prepare(alone.parent / "told", alone.parent / "sounds")
    process = start(directory)
    wait_for(directory / "run", "checkpoints/2*", process, directory / "out.txt")
    os.kill(process.pid, signal.SIGSTOP)  # It holds the directory, however long it takes.
    second = start(directory, log="second.txt")
    assert second.wait(timeout=120) == 2
    said = (directory / "second.txt").read_text()
    assert f"run is in use by another training (process {process.pid} on " in said
    assert "Traceback" not in said
    os.kill(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert "stopped by SIGTERM; " in (directory / "out.txt").read_text().replace("\n", " ")
    finish(directory)
    assert_same(directory, alone)
