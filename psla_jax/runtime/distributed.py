"""Several processes of one command under ``jax.distributed``, each with a part of every batch.

Every process runs the same program on the same data. The primary process (index 0) writes files and messages; the other
processes read what they need from the run directory, which is on a disk that all of them share.

JAX detects processes that are gone: where a collective operation does not fail at once, all remaining processes are
aborted with a message of JAX within ``distributed.timeout`` seconds. :func:`agree` covers errors that only some
processes encounter.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from psla_jax.config import ConfigError, DistributedConfig
from psla_jax.runtime import launcher

SHUTDOWN_SECONDS = 10
"""Seconds that a process which ends waits for the others to end too."""

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another process of this command is gone or has failed, so this one cannot continue."""


def initialize(config: DistributedConfig) -> None:
    """Connects this process with the others, if there are any. Must be called before any computation.

    The processes are described by the config, or detected by JAX under Slurm, Open MPI or Kubernetes.

    Raises:
        ConfigError: the config is incomplete.
        PeerError: the processes did not connect within ``config.meeting`` seconds.
    """
    if jax.distributed.is_initialized():
        return
    explicit = bool(config.coordinator)
    if not (explicit or launcher.several()):
        if config.processes > 1:
            raise ConfigError(
                f"distributed.processes is {config.processes}, but distributed.coordinator is empty: set it to the "
                "HOST:PORT of the first process, the same for all processes."
            )
        return
    if explicit and config.processes < 2:
        raise ConfigError(
            f"distributed.processes is {config.processes} with distributed.coordinator {config.coordinator}: set the "
            "number of processes, and distributed.index to the index of this one."
        )
    address = config.coordinator or "the address that the launcher set"
    name = f"process {config.index} of {config.processes}" if explicit else "this process"
    # JAX aborts a process whose peers are missing with messages of its own, so the context is printed before.
    print(
        f"psla: connecting {name} at {address}, for at most {config.meeting} s. If a process ends later, JAX aborts "
        f"the others within {config.timeout} s.",
        file=sys.stderr,
        flush=True,
    )
    # JAX's preemption service would take the first SIGTERM, which psla_jax.runtime.preemption handles.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator or None,
            num_processes=config.processes if explicit else None,
            process_id=config.index if explicit else None,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            initialization_timeout=config.meeting,
        )
    except Exception as error:
        raise PeerError(
            f"the processes of this command did not connect at {address} within {config.meeting} s: check that all of "
            "them were started and can reach it."
        ) from error


def process_count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def process_index() -> int:
    """Returns the index of this process, from 0."""
    return jax.process_index()


def is_primary() -> bool:
    """Returns whether this is the process that writes files and messages."""
    return process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have called it with the same name."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(f"psla: {name}")


def gather(tree: Any) -> Any:
    """Returns a tree of NumPy arrays, concatenated over the processes along the first axis."""
    if process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process."""
    return bool(gather(np.array([flag])).any())


def max_over_processes(number: int) -> int:
    """Returns the largest of the processes' numbers."""
    return int(gather(np.array([number], np.int32)).max())


def on_primary(function: Callable[[], T], error_type: type[Exception]) -> T:
    """Calls a function in the primary process, and in all returns its JSON-able result or raises its `error_type`."""
    if process_count() == 1:
        return function()
    outcome: dict[str, Any] = {}
    if is_primary():
        try:
            outcome = {"value": function()}
        except error_type as error:
            outcome = {"error": str(error)}
    outcome = json.loads(_broadcast(json.dumps(outcome), source=0))
    if "error" in outcome:
        raise error_type(outcome["error"])
    return outcome["value"]


@contextlib.contextmanager
def agree() -> Iterator[None]:
    """Ends with an exception in all processes if the body raises one in any of them.

    A process whose body raised keeps its own exception; the others raise PeerError with the message of the first one
    that did. All processes must enter it, and the body must contain no collective operation.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if problem is not None and process_count() == 1:
        raise problem
    failed = gather(np.array([problem is not None]))
    if not failed.any():
        return
    index = int(failed.argmax())
    message = _broadcast(str(problem), source=index)
    if problem is not None:
        raise problem
    raise PeerError(f"process {index} of {process_count()} failed: {message}")


def _broadcast(text: str, source: int) -> str:
    """Returns the text of the process with index `source`."""
    content = text.encode()
    buffer = np.zeros(max_over_processes(len(content)), np.uint8)
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    received = multihost_utils.broadcast_one_to_all(buffer, is_source=process_index() == source)
    return bytes(np.asarray(received).astype(np.uint8)).rstrip(b"\0").decode()


@contextlib.contextmanager
def session(config: DistributedConfig) -> Iterator[None]:
    """Connects the processes for the body, and disconnects them when all have completed it.

    Processes that are connected already, by an outer session or by the caller, stay connected. Raises the errors of
    :func:`initialize`, and PeerError if a collective operation failed because a process is gone.
    """
    connected = jax.distributed.is_initialized()
    initialize(config)
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Depending on the operation, JAX raises a failure of Gloo as either of these types.
        if process_count() == 1 or not _is_communication_error(error):
            raise
        raise PeerError(
            f"process {process_index()} of {process_count()} lost the connection to another process, which has ended "
            "or cannot be reached: see the output of the others, then start all of them again to resume."
        ) from error
    if process_count() > 1 and not connected:
        barrier("done")
        jax.distributed.shutdown()


def _is_communication_error(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text or "UNAVAILABLE" in text
