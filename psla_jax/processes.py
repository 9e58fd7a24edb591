"""The processes of one command: a single one, or several under ``jax.distributed``, each with a part of every batch.

Every process runs the same program on the same data. The first one writes files and speaks; what the others read from
the run directory they find there too, so it lies on a disk that all of them share.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from psla_jax import launch
from psla_jax.config import ConfigError, DistributedConfig
from psla_jax.terminal import printable

BEAT = 1.0
"""Seconds between two signs of life."""
FAREWELL = 5 * BEAT
"""Seconds that the first process stays when all end because of one."""
PATIENCE_OF_JAX = 120
"""Seconds by which JAX's own watch, which ends a process without a word, is slower than ours."""
PREFIX = "psla/alive/"
ENDED = "psla/ended/"
LAST_WORDS = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
words = ""
for line in sys.stdin:
    words = line
sys.stderr.write(words.strip() and words)
"""
"""A process that says the last line it was given once its parent is gone; an empty one is none."""

T = TypeVar("T")

_watch: Watchman | None = None


class PeerError(RuntimeError):
    """Another process of this command is gone, so this one cannot go on."""


def join(config: DistributedConfig) -> None:
    """Meets the other processes, where there are any; to be called before anything is computed.

    They are named by the config, or found by JAX where Slurm, Open MPI or Kubernetes started them.

    Raises:
        ConfigError: the config names some of them, but not how many or where they meet.
        PeerError: they did not all come.
    """
    global _watch
    if _watch is not None:
        return
    if not (config.coordinator or launch.several()):
        if config.processes > 1:
            raise ConfigError(
                f"distributed.processes is {config.processes}, but they have no address to meet at: name it with "
                "distributed.coordinator HOST:PORT, the same for all."
            )
        return
    explicit = bool(config.coordinator)
    if explicit and config.processes < 2:
        raise ConfigError(
            f"distributed.processes is {config.processes} with distributed.coordinator {config.coordinator}: say how "
            "many processes there are, and which one this is with distributed.index."
        )
    # JAX would take the first notice of SIGTERM for itself; this package stops in its own way.
    jax.config.update("jax_enable_preemption_service", False)
    where = config.coordinator or "the address that was found"
    not_met = (
        f"the processes of this command did not meet at {where} within {config.meeting} s: look whether all of them "
        "were started, and can reach it."
    )
    words = LastWords()
    words.leave(f"psla: {not_met}")  # JAX aborts where it waits in vain.
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator or None,
            num_processes=config.processes if explicit else None,
            process_id=config.index if explicit else None,
            heartbeat_timeout_seconds=config.timeout + PATIENCE_OF_JAX,
            initialization_timeout=config.meeting,
        )
    except Exception as error:
        raise PeerError(not_met) from error
    finally:
        words.leave("")
    if count() > 1:
        _watch = Watchman(config.timeout, words)
        _watch.start()


def count() -> int:
    """How many there are."""
    return jax.process_count()


def index() -> int:
    """Which one this is, from 0."""
    return jax.process_index()


def first() -> bool:
    """Whether this is the one that writes and speaks."""
    return index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"psla: {name}")


def gather(tree: Any) -> Any:
    """A tree of NumPy arrays, those of all processes one after the other along the first axis."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def any_of(flag: bool) -> bool:
    """Whether it is set in any process."""
    return bool(flag) if count() == 1 else bool(gather(np.array([flag])).any())


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    return number if count() == 1 else int(gather(np.array([number], np.int32)).max())


def of_first(function: Callable[[], T], problem: type[Exception]) -> T:
    """What a function returns in the first process, the only one that calls it; a `problem` is raised in all of them.

    What it returns can be written as JSON.
    """
    if count() == 1:
        return function()
    told: dict[str, Any] = {}
    if first():
        try:
            told = {"value": function()}
        except problem as error:
            told = {"problem": str(error)}
    told = json.loads(_of_first(json.dumps(told).encode()))
    if "problem" in told:
        raise problem(told["problem"])
    return told["value"]


def _of_first(text: bytes) -> bytes:
    """The first process's text."""
    from jax.experimental import multihost_utils

    here = np.zeros(largest(len(text)), np.uint8)
    if first():
        here[:] = np.frombuffer(text, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(here).astype(np.uint8))


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Meets the other processes, and parts from them at the end; what fails because one is gone is said so.

    What ends one of them ends all: the others say what it was.

    Raises:
        ConfigError, PeerError: as :func:`join`.
    """
    join(config)
    try:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if count() == 1:
                raise
            raise blame(error) from error
    except BaseException as error:
        if hasattr(error, "code") and isinstance(error, KeyboardInterrupt):  # All of them stop after the same step.
            leave()
        elif _watch is not None:
            _watch.part(str(error).strip() or type(error).__name__)
        raise
    leave()


def leave() -> None:
    """Parts from the other processes, all of which have come to the end."""
    global _watch
    if _watch is None:
        return
    barrier("done")
    _watch.stop()
    _watch = None
    jax.distributed.shutdown()


def blame(error: Exception) -> PeerError:
    """What a failed communication means; waits for the watch to find out who is gone, and then does not return."""
    if _watch is not None:
        _watch.wait()
    return PeerError(
        f"something that all processes do together failed ({str(error).strip().splitlines()[0]}): start all of them "
        "again to go on."
    )


class LastWords:
    """What is to be said should this process be gone without a word of its own: a process that outlives it says so."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", LAST_WORDS]
        self._speaker = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        self._words = ""
        atexit.register(self.leave, "")

    def leave(self, words: str) -> None:
        """Takes the place of what was left before; an empty text is nothing."""
        pipe = self._speaker.stdin
        with contextlib.suppress(OSError, ValueError):
            if pipe is not None and words != self._words:
                pipe.write(words + "\n")
                pipe.flush()
                self._words = words


def _name() -> str:
    """This process, as the others name it."""
    return f"{socket.gethostname()}, process id {os.getpid()}"


class Watchman(threading.Thread):
    """Gives signs of life, and ends this process with a sentence when those of another one stop.

    A process that waits for a peer waits in XLA, where no Python code can wake it: so the watch is a thread, and ends
    the process as a whole. Where the first process dies, JAX aborts all others on the spot: what there is to say then
    is said by a process of its own.
    """

    def __init__(self, timeout: int, words: LastWords) -> None:
        super().__init__(name="watchman", daemon=True)
        # What JAX and Orbax use themselves; there is no public name for it.
        from jax._src.distributed import global_state

        self._client: Any = global_state.client
        self._service: Any = global_state.service
        self._timeout = timeout
        self._index, self._count = index(), count()
        self._known: dict[int, tuple[str, float]] = {}
        self._names = dict.fromkeys(range(self._count), "")
        self._done = threading.Event()
        self._parted = False
        self._words = words

    def stop(self) -> None:
        """All processes are done."""
        self._done.set()
        self.join()
        self._words.leave("")

    def part(self, why: str) -> None:
        """Tells the others that this process ends, and why; they end then, without waiting for it."""
        from jax._src.distributed import global_state

        self._parted = True
        self._words.leave("")
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{ENDED}{self._index}", f"{_name()}|{why}", allow_overwrite=True)
        self._see_off()
        # At its exit JAX would wait minutes for the others to come. The thread holds both as long as the process lives.
        global_state.client = global_state.service = None

    def wait(self) -> None:
        """Gives the watch the time it needs to find out who is gone."""
        time.sleep(self._timeout + 5 * BEAT)

    def run(self) -> None:
        """Looks once a second."""
        started = time.monotonic()
        self._known = dict.fromkeys(range(self._count), ("", started))
        beats = 0
        while not self._done.wait(BEAT):
            beats += 1
            try:
                self._beat(beats)
            except Exception:  # The first process answers for all, and does not answer.
                if self._done.is_set():
                    return
                if time.monotonic() - self._known[0][1] > self._timeout:
                    self._end(0)
                continue
            gone = [peer for peer, (_, at) in self._known.items() if time.monotonic() - at > self._timeout]
            if gone:
                self._end(gone[0])

    def _beat(self, beats: int) -> None:
        self._client.key_value_set(f"{PREFIX}{self._index}", f"{beats}|{_name()}", allow_overwrite=True)
        now = time.monotonic()
        for key, value in self._client.key_value_dir_get(PREFIX):
            peer = int(key.rsplit("/", 1)[1])
            self._names[peer] = value.split("|", 1)[1]
            if self._known[peer][0] != value:
                self._known[peer] = (value, now)
        for key, value in self._client.key_value_dir_get(ENDED):
            peer = int(key.rsplit("/", 1)[1])
            self._names[peer], why = value.split("|", 1)
            self._end(peer, why)
        if self._index and self._names[0]:
            self._words.leave(
                f"psla: process {self._index} of {self._count} was ended by force; if it is not said why, then because "
                f"process 0 ({self._names[0]}) is gone, without which none can be: start all of them again to go on "
                "from the last checkpoint."
            )

    def _end(self, peer: int, why: str = "") -> None:
        """Says that another process is gone, and ends this one; where this one has an end of its own, nothing."""
        if self._parted or self._done.is_set():
            return
        name = f" ({self._names[peer]})" if self._names[peer] else ""
        self._words.leave("")
        if why:
            line = f"psla: process {peer} of {self._count}{name} ended: {printable(why)}\n"
        else:
            line = (
                f"psla: process {peer} of {self._count}{name} has not been heard of for {self._timeout} s, so process "
                f"{self._index} ends too: start all of them again to go on from the last checkpoint.\n"
            )
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), line.encode())
        if why:
            self._see_off()
        os._exit(1)

    def _see_off(self) -> None:
        """JAX aborts the others where the first process is gone before them, so it gives them time to end."""
        if self._index == 0:
            time.sleep(FAREWELL)
