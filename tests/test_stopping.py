"""Signals: the first is noted whatever the process is at, the second ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from psla_jax.stopping import Stop, Stopped, exit_code

WAITING = """
import threading
from psla_jax.stopping import Stop
with Stop() as stop:
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
    assert process.stderr.readline() == "psla: SIGTERM: finishing this step and saving; once more ends it at once.\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == exit_code(signal.SIGINT) == 130
    assert process.stderr.read() == "psla: SIGINT again: ended at once; what was saved before is as it was.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        stop.check()
        assert not stop
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 30
        while not stop and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Stopped, match="all is saved: start it again to go on") as raised:
            stop.check("all is saved")
        with pytest.raises(Stopped):
            stop.check_together()
    assert raised.value.code == exit_code(number)
    assert isinstance(raised.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before


def test_in_another_thread_signals_are_left_alone() -> None:
    found = []

    def work() -> None:
        with Stop() as stop:
            found.append((signal.getsignal(signal.SIGTERM), bool(stop)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
