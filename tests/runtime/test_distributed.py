"""Several processes of one run: the same results as a single process, and a message where one of them is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scoring
from starting import assert_same, finish, prepare, start, start_together, wait_for

from psla_jax.config import ConfigError, DistributedConfig
from psla_jax.runtime import distributed, launcher


def test_two_processes_train_as_one_also_when_one_was_killed_and_one_goes_on(alone: Path, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "two", alone.parent / "sounds")
    parts = start_together(directory, 2, "--distributed.timeout", "10")
    wait_for(directory / "run", "checkpoints/2", parts[0], directory / "out0.txt")
    parts[1].send_signal(signal.SIGKILL)
    assert parts[0].wait(timeout=60) not in (0, 130, 143)
    output = (directory / "out0.txt").read_text()
    assert "psla: process 0 of 2 lost the connection to another process" in output
    assert "Traceback" not in output
    parts[1].wait()
    finish(directory)  # One process with as many devices as the two.
    assert_same(directory, alone)
    assert "epoch" not in (directory / "out1.txt").read_text()
    assert (directory / "run" / "log.txt").read_text().count("epoch 3/3") == 1


@pytest.mark.parametrize("faulty", [0, 1])
def test_an_error_in_one_process_ends_all_and_is_reported_by_all(faulty: int, alone: Path, tmp_path: Path) -> None:
    directory = prepare(tmp_path / "two", alone.parent / "sounds")
    parts = start_together(directory, 2, only={faulty: ("--data.train", "nothing.json")})
    assert [part.wait(timeout=120) for part in parts] == [2 if index == faulty else 1 for index in range(2)]
    last = [(directory / f"out{index}.txt").read_text().strip().splitlines()[-1] for index in range(2)]
    assert last[faulty].startswith("psla: ")
    assert "nothing.json" in last[faulty]
    assert last[1 - faulty] == f"psla: process {faulty} of 2 failed: {last[faulty].removeprefix('psla: ')}"


STOPPED_PEER = """
import os, signal, sys
from psla_jax.config import DistributedConfig
from psla_jax.runtime import distributed
index = int(sys.argv[2])
config = DistributedConfig(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=2, index=index, timeout=5)
with distributed.session(config):
    distributed.barrier("begin")
    if index == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.barrier("end")
"""


def test_a_process_that_hangs_ends_the_others_within_the_timeout(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STOPPED_PEER, str(port)]
    parts = [
        subprocess.Popen([*command, str(index)], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    _, output = parts[0].communicate(timeout=60)
    parts[1].kill()
    parts[1].communicate()
    assert parts[0].returncode != 0
    assert "another task died" in output
    assert "psla: connecting process 0 of 2" in output
    assert "within 5 s" in output


REVERSED_MESH = """
import sys
import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
import scoring
from psla_jax.config import DistributedConfig
from psla_jax.runtime import distributed
from psla_jax.runtime.sharding import Placement
jax.config.update("jax_num_cpu_devices", 2)
index = int(sys.argv[2])
with distributed.session(DistributedConfig(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=2, index=index)):
    placement = Placement(Mesh(np.array(jax.devices()[::-1]), ("data",), axis_types=(AxisType.Auto,)))
    scores = scoring.scored(7, 4, placement=placement)
np.savez(sys.argv[3] + f"/{index}.npz", clips=scores.clips, scores=scores.scores, labels=scores.labels)
"""


def test_scores_belong_to_their_clips_in_any_order_of_the_devices(tmp_path: Path) -> None:
    """In a mesh with the devices of the last process first, rows and processes have different orders."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    command = [sys.executable, "-c", REVERSED_MESH, str(port)]
    parts = [subprocess.Popen([*command, str(index), str(tmp_path)], env=environment) for index in range(2)]
    assert [part.wait(timeout=120) for part in parts] == [0, 0]
    expected = scoring.scored(7, 4)
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as scores:
            assert scores["clips"].tolist() == expected.clips.tolist()
            np.testing.assert_array_equal(scores["labels"], expected.labels)
            np.testing.assert_allclose(scores["scores"], expected.scores, atol=1e-6)


def test_a_coordinator_without_a_number_of_processes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"distributed\.processes is 1 with distributed\.coordinator a:1: set the number"
    ):
        distributed.initialize(DistributedConfig(coordinator="a:1"))


def test_a_number_of_processes_without_a_coordinator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "several", lambda: False)
    with pytest.raises(ConfigError, match=r"distributed\.processes is 4, but distributed\.coordinator is empty"):
        distributed.initialize(DistributedConfig(processes=4, index=1))


def test_processes_that_do_not_connect_end_and_have_reported_the_address(tmp_path: Path) -> None:
    directory = prepare(tmp_path / "late", tmp_path)
    options = ("--distributed.processes", "2", "--distributed.index", "1", "--distributed.meeting", "2")
    process = start(directory, "--distributed.coordinator", "127.0.0.1:9", *options)
    assert process.wait(timeout=120) != 0
    output = (directory / "out.txt").read_text()
    assert "psla: connecting process 1 of 2 at 127.0.0.1:9, for at most 2 s" in output
    assert "Deadline Exceeded" in output or "did not connect at 127.0.0.1:9 within 2 s" in output


def test_a_single_process_needs_no_connection() -> None:
    with distributed.session(DistributedConfig()):
        assert (distributed.process_index(), distributed.process_count(), distributed.is_primary()) == (0, 1, True)
        distributed.barrier("single")
        assert distributed.max_over_processes(3) == 3
        assert distributed.any_process(True)
        assert not distributed.any_process(False)
        assert distributed.gather({"a": 1}) == {"a": 1}
        with pytest.raises(OSError, match="mine"), distributed.agree():
            raise OSError("mine")
