"""Signals: the first one is recorded, whatever the process is doing; the second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from psla_jax.runtime.preemption import StopHandler, Stopped, exit_code

WAITING = """
import threading
from psla_jax.runtime.preemption import StopHandler
with StopHandler() as stop:
    print("ready", flush=True)
    threading.Event().wait()
"""


def test_a_second_signal_ends_a_process_that_waits_in_its_loop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline() == (
        "psla: SIGTERM received: finishing this step and saving; a second signal ends the process at once.\n"
    )
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert process.stderr.read() == "psla: SIGINT received again: ending at once; earlier checkpoints are intact.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with StopHandler() as stop:
        stop.check()
        assert not stop
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 30
        while not stop and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Stopped, match="all is saved: start the command again to resume") as raised:
            stop.check("all is saved")
        with pytest.raises(Stopped):
            stop.check_all_processes()
    assert raised.value.code == exit_code(number)
    assert isinstance(raised.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before


def test_in_another_thread_signals_are_left_alone() -> None:
    found = []

    def work() -> None:
        with StopHandler() as stop:
            found.append((signal.getsignal(signal.SIGTERM), bool(stop)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
