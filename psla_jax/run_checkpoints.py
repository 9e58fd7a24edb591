"""The states of a run to go on from: the latest two, each whole or absent, written while training goes on.

Orbax writes them, all processes together. A checksum of every array goes with them, so that what a disk gives back
wrong is found out, and the checkpoint before is taken instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from psla_jax import processes
from psla_jax.checkpoints import CheckpointError, first_line, named, unnamed

State = dict[str, Any]
KEPT = 2
CHECKSUM = "crc32"
DAMAGED = "damaged_"
"""Prefix of what became of a checkpoint that cannot be read."""


class SaveError(RuntimeError):
    """A checkpoint that could not be written; the ones before it are as they were."""


class RunCheckpoints:
    """The checkpoints of one run.

    Attributes:
        directory: ``checkpoints/`` of the run.
    """

    def __init__(self, directory: Path) -> None:
        if processes.first():
            directory.mkdir(parents=True, exist_ok=True)
        processes.barrier("checkpoints")
        self.directory = directory
        self._orbax = self._opened()

    def _opened(self) -> ocp.training.Checkpointer:
        policy = ocp.training.preservation_policies.LatestN(KEPT)
        return ocp.training.Checkpointer(self.directory.absolute(), preservation_policy=policy)

    def steps(self) -> list[int]:
        """Steps done at each checkpoint there is, the newest first."""
        return sorted((int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit()), reverse=True)

    def save(self, step: int, state: State, notes: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps, with JSON-able notes; returns once the arrays are copied.

        Raises:
            SaveError: it cannot be written, or the one before could not.
        """
        items = _items(state)
        marked = {**notes, CHECKSUM: checksum(items)}
        with self._told():
            self._orbax.save_checkpointables_async(step, items, force=True, overwrite=True, custom_metadata=marked)

    def newest(self, like: State, say: Callable[[str], None]) -> tuple[int, State, dict[str, Any]] | None:
        """Steps, state and notes of the newest checkpoint that is as it was written; None if there is none at all.

        What cannot be read is renamed, and `say` is told.

        Raises:
            CheckpointError: there are checkpoints, and none of them can be read.
        """
        steps = self.steps()
        for number, step in enumerate(steps):
            try:
                return step, *self._restored_by_all(step, like)
            except CheckpointError as error:
                if number + 1 == len(steps):
                    raise CheckpointError(
                        f"{error}, and there is none before it: restore {self.directory} from a copy, or delete it to "
                        "train from the beginning."
                    ) from error
                say(f"{error}: going on from the one before, of step {steps[number + 1]}")
                self._set_aside(step)
        return None

    def _restored_by_all(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """As :meth:`_restore`; what one of several processes cannot read, none of them takes."""
        found, problem = None, None
        try:
            found = self._restore(step, like)
        except CheckpointError as error:
            problem = error
        if processes.any_of(found is None) or found is None:
            raise problem or CheckpointError(
                f"the checkpoint {self.directory / str(step)} is damaged for another process"
            )
        return found

    def _restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(like))
        try:
            found = self._orbax.load_checkpointables(step, abstract)
            notes = dict(self._orbax.checkpointables_metadata(step).custom_metadata or {})
        except Exception as error:  # Orbax and its storage raise many kinds; all of them mean the same to the user.
            _raise_if_a_peer_is_gone(error)
            raise CheckpointError(
                f"the checkpoint {self.directory / str(step)} cannot be read ({first_line(error)})"
            ) from error
        if notes.pop(CHECKSUM, None) != checksum(found):
            raise CheckpointError(f"the checkpoint {self.directory / str(step)} is damaged (its checksum is wrong)")
        model = {k: unnamed(found["model"][k], like[k]) for k in ("params", "rest")}
        leaves = [found["opt"]["leaves"][str(i)] for i in range(len(found["opt"]["leaves"]))]
        opt = jax.tree.unflatten(jax.tree.structure(like["opt"]), leaves)
        return {**model, "opt": opt, "progress": found["opt"]["progress"]}, notes

    def _set_aside(self, step: int) -> None:
        """Takes a checkpoint out of the sequence; nothing is deleted that somebody may want to look at."""
        self._orbax.close()
        if processes.first():
            target = self.directory / f"{DAMAGED}{step}"
            number = 1
            while target.exists():
                target, number = self.directory / f"{DAMAGED}{step}_{number}", number + 1
            os.replace(self.directory / str(step), target)
        processes.barrier(f"damaged {step}")
        self._orbax = self._opened()

    def wait(self) -> None:
        """Blocks until what was started is on disk. Raises SaveError if it cannot be."""
        with self._told():
            self._orbax.wait()

    def close(self) -> None:
        """Waits, and lets go of the directory. Raises SaveError as :meth:`wait`."""
        with self._told():
            self._orbax.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Orbax writes while training goes on, and raises what went wrong when it is called next."""
        try:
            yield
        except Exception as error:  # As in _restore.
            _raise_if_a_peer_is_gone(error)
            whole = self.steps()
            before = f"; the one of step {whole[0]} is whole" if whole else ""
            full = os.strerror(errno.ENOSPC)
            why = full if full in str(error) else first_line(error)
            raise SaveError(
                f"a checkpoint could not be written to {self.directory} ({why}){before}: make room there, and start "
                "again to go on."
            ) from error


def _raise_if_a_peer_is_gone(error: Exception) -> None:
    """Between processes, JAX's own errors are of their connection, and say nothing of a disk."""
    if processes.count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        raise error


def _items(state: State) -> dict[str, Any]:
    """What is stored. The optimizer's state is numbered: its named tuples are optax's business, and may be renamed."""
    opt = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state["opt"]))}
    return {
        "model": {k: named(state[k]) for k in ("params", "rest")},
        "opt": {"leaves": opt, "progress": state["progress"]},
    }


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, one after the other."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total
