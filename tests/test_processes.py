"""Several processes of one run: the numbers of a single one, and an end in words where one of them is gone."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from starting import assert_same, prepare, start, start_together, wait_for

from psla_jax import launch, processes
from psla_jax.config import ConfigError, DistributedConfig


def test_two_processes_train_as_one_also_after_one_was_killed(alone: Path, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "two", alone.parent / "sounds")
    parts = start_together(directory, 2, "--distributed.timeout", "5")
    wait_for(directory / "run", "checkpoints/2", parts[0], directory / "out0.txt")
    parts[1].send_signal(signal.SIGKILL)
    assert parts[0].wait(timeout=60) == 1
    said = (directory / "out0.txt").read_text()
    assert re.search(rf"psla: process 1 of 2 \(.*, process id {parts[1].pid}\) has not been heard of for 5 s", said)
    assert "Traceback" not in said
    parts[1].wait()
    parts = start_together(directory, 2)
    assert [part.wait(timeout=300) for part in parts] == [0, 0], (directory / "out0.txt").read_text()
    assert_same(directory, alone)
    assert "epoch" not in (directory / "out1.txt").read_text()
    assert (directory / "run" / "log.txt").read_text().count("epoch 3/3") == 1


@pytest.mark.parametrize("faulty", [0, 1])
def test_what_ends_one_process_is_said_by_the_others_which_end_too(faulty: int, alone: Path, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "two", alone.parent / "sounds")
    parts = start_together(directory, 2, only={faulty: ("--data.train", "nothing.json")})
    assert [part.wait(timeout=120) for part in parts] == [2 if index == faulty else 1 for index in range(2)]
    said = [(directory / f"out{index}.txt").read_text().strip().splitlines()[-1] for index in range(2)]
    assert said[faulty].startswith("psla: ")
    assert "nothing.json" in said[faulty]
    name = rf"process {faulty} of 2 \(.*, process id {parts[faulty].pid}\)"
    assert re.fullmatch(rf"psla: {name} ended: {re.escape(said[faulty].removeprefix('psla: '))}", said[1 - faulty])


def test_a_coordinator_without_a_number_of_processes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"distributed\.processes is 1 with distributed\.coordinator a:1: say how many"
    ):
        processes.join(DistributedConfig(coordinator="a:1"))


def test_a_number_of_processes_without_a_coordinator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "several", lambda: False)
    with pytest.raises(ConfigError, match=r"distributed\.processes is 4, but they have no address to meet at"):
        processes.join(DistributedConfig(processes=4, index=1))


def test_processes_that_do_not_meet_say_where_they_waited(tmp_path: Path) -> None:
    directory = prepare(tmp_path / "late", tmp_path)
    options = ("--distributed.processes", "2", "--distributed.index", "1", "--distributed.meeting", "2")
    process = start(directory, "--distributed.coordinator", "127.0.0.1:9", *options)
    assert process.wait(timeout=120) != 0
    deadline, said = time.monotonic() + 30, ""
    while "psla: " not in said and time.monotonic() < deadline:  # It is said by a process that outlives it.
        time.sleep(0.1)
        said = (directory / "out.txt").read_text()
    assert said.rstrip().endswith(
        "psla: the processes of this command did not meet at 127.0.0.1:9 within 2 s: look whether all of them were "
        "started, and can reach it."
    )


def test_a_single_process_is_the_first_of_one_and_needs_nobody() -> None:
    with processes.joined(DistributedConfig()):
        assert (processes.index(), processes.count(), processes.first()) == (0, 1, True)
        processes.barrier("nobody")
        assert processes.largest(3) == 3
        assert processes.any_of(True)
        assert not processes.any_of(False)
        assert processes.gather({"a": 1}) == {"a": 1}
