"""Training checkpoints: the latest two states of a run, each complete or absent, written while training continues.

Orbax writes them, all processes together. A checksum of all arrays is stored with each checkpoint: a damaged one is
detected, and the one before it is used instead.
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

from psla_jax.models.model_dir import CheckpointError, first_line, restore_keys, string_keys
from psla_jax.runtime import distributed
from psla_jax.training.run_directory import RunError

State = dict[str, Any]
MAX_TO_KEEP = 2
FORMAT_KEY, FORMAT = "format", 2
"""Version of the layout of a state. Checkpoints without this key have the optimizer's state as one flat vector."""
CHECKSUM = "crc32"
DAMAGED = "damaged_"
"""Prefix that the directory of an unreadable checkpoint is given."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


class RunCheckpoints:
    """The checkpoints of one run, in `directory`, ``checkpoints/`` of the run directory."""

    def __init__(self, directory: Path) -> None:
        if distributed.is_primary():
            directory.mkdir(parents=True, exist_ok=True)
        distributed.barrier("checkpoints")
        self.directory = directory
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        policy = ocp.training.preservation_policies.LatestN(MAX_TO_KEEP)
        return ocp.training.Checkpointer(self.directory.absolute(), preservation_policy=policy)

    def steps(self) -> list[int]:
        """Returns the numbers of steps after which there is a checkpoint, the latest first."""
        return sorted((int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit()), reverse=True)

    def save(self, step: int, state: State, notes: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps with JSON-able notes; returns once the arrays are copied.

        Raises SaveError if this or the previous checkpoint cannot be written.
        """
        items = _items(state)
        metadata = {**notes, FORMAT_KEY: FORMAT, CHECKSUM: checksum(items)}
        with self._save_errors():
            self._checkpointer.save_checkpointables_async(
                step, items, force=True, overwrite=True, custom_metadata=metadata
            )

    def latest(self, like: State, log: Callable[[str], None]) -> tuple[int, State, dict[str, Any]] | None:
        """Returns number of steps, state and notes of the latest intact checkpoint; None if there is no checkpoint.

        `like` is a state with the same structure, shapes and shardings. Unreadable checkpoints are renamed and reported
        to `log`.

        Raises:
            RunError: the run was started by an earlier version of this package.
            CheckpointError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        for position, step in enumerate(steps):
            try:
                return step, *self._load_in_all_processes(step, like)
            except CheckpointError as error:
                if position + 1 == len(steps):
                    raise CheckpointError(
                        f"{error}, and there is no earlier one: restore {self.directory} from a copy, or delete it to "
                        "train from the beginning."
                    ) from error
                log(f"{error}: resuming from the previous checkpoint, of step {steps[position + 1]}")
                self._rename_damaged(step)
        return None

    def _load_in_all_processes(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """As :meth:`_load`; raises CheckpointError in all processes if one of them cannot read the checkpoint."""
        loaded, problem = None, None
        try:
            loaded = self._load(step, like)
        except CheckpointError as error:
            problem = error
        if distributed.any_process(loaded is None) or loaded is None:
            path = self.directory / str(step)
            raise problem or CheckpointError(f"the checkpoint {path} is damaged for another process")
        return loaded

    def _load(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        path = self.directory / str(step)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(like))
        try:
            notes = dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})
            outdated = CHECKSUM in notes and notes.get(FORMAT_KEY) != FORMAT
            loaded = None if outdated else self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:  # Orbax and its storage layers raise many types.
            _raise_communication_errors(error)
            raise CheckpointError(f"the checkpoint {path} cannot be read ({first_line(error)})") from error
        if loaded is None:
            raise RunError(
                f"{self.directory.parent} was started by an earlier version of psla_jax, whose optimizer state this "
                "version cannot read: finish the run with that version, or start another run from its weights with "
                f"--pretraining.source {self.directory.parent}/models/epoch_..."
            )
        if notes.pop(CHECKSUM, None) != checksum(loaded):
            raise CheckpointError(f"the checkpoint {path} is damaged (its checksum is wrong)")
        del notes[FORMAT_KEY]
        model = {k: restore_keys(loaded["model"][k], like[k]) for k in ("params", "batch_stats")}
        leaves = [loaded["opt"]["leaves"][str(i)] for i in range(len(loaded["opt"]["leaves"]))]
        opt = jax.tree.unflatten(jax.tree.structure(like["opt"]), leaves)
        average = {"ema": restore_keys(loaded["ema"], like["ema"])} if "ema" in like else {}
        return {**model, **average, "opt": opt, "progress": loaded["opt"]["progress"]}, notes

    def _rename_damaged(self, step: int) -> None:
        """Removes a checkpoint from the sequence, but preserves its files for inspection."""
        self._checkpointer.close()
        if distributed.is_primary():
            target, number = self.directory / f"{DAMAGED}{step}", 1
            while target.exists():
                target, number = self.directory / f"{DAMAGED}{step}_{number}", number + 1
            os.replace(self.directory / str(step), target)
        distributed.barrier(f"damaged {step}")
        self._checkpointer = self._open()

    def wait(self) -> None:
        """Blocks until all checkpoints are on disk. Raises SaveError if one cannot be written."""
        with self._save_errors():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits, and releases the directory. Raises SaveError as :meth:`wait`."""
        with self._save_errors():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Raises SaveError for an error of Orbax, which reports errors of asynchronous writes at its next call."""
        try:
            yield
        except Exception as error:  # As in _load.
            _raise_communication_errors(error)
            steps = self.steps()
            intact = f"; the one of step {steps[0]} is intact" if steps else ""
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else first_line(error)
            raise SaveError(
                f"a checkpoint could not be written to {self.directory} ({reason}){intact}: free space there, and "
                "start the command again to resume."
            ) from error


def _raise_communication_errors(error: Exception) -> None:
    """Raises JAX's own errors, which with several processes concern their connection and not a disk."""
    if distributed.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        raise error


def _items(state: State) -> dict[str, Any]:
    """Returns the trees to store. The optimizer's leaves are numbered: its named tuples are internal to optax."""
    opt = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state["opt"]))}
    average = {"ema": string_keys(state["ema"])} if "ema" in state else {}
    return {
        "model": {k: string_keys(state[k]) for k in ("params", "batch_stats")},
        "opt": {"leaves": opt, "progress": state["progress"]},
        **average,
    }


def checksum(tree: Any) -> int:
    """Returns the CRC-32 of all arrays of a tree in order."""
    return jax.tree.reduce(lambda crc, x: zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data, crc), tree, 0)
