"""The run directory: its config and data, and a lock that admits one training at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from psla_jax.config import RunConfig, differences, from_json, to_json
from psla_jax.data.datasets import DataSets
from psla_jax.evaluation import tables
from psla_jax.runtime import distributed
from psla_jax.training.optimizer import same_rates

CONFIG, DATA, SUMMARY, LOG, LABELS = "config.json", "data.json", "summary.json", "log.txt", "labels.csv"
CHECKPOINTS, LOCK, LOCK_OWNER = "checkpoints", ".lock", ".lock.owner"
WRITTEN_BEFORE_CONFIG = (LABELS, DATA)
"""Files of a run that was killed before it wrote its config."""


class RunError(ValueError):
    """A run directory cannot be used as requested; the message names it and the remedy."""


def require_compatible(directory: Path, config: RunConfig, data: DataSets) -> list[str]:
    """Raises RunError if `directory` holds a run of another config or other data, or something that is no run.

    Returns the names of the data sets that were edited since the run was started, where ``data.edited`` accepts this.
    """
    if not directory.exists():
        return []
    if not directory.is_dir():
        raise RunError(f"{directory} is a file: choose another directory with --run-dir.")
    if not (directory / CONFIG).is_file():
        if all(entry.name in WRITTEN_BEFORE_CONFIG or entry.name.startswith(".") for entry in directory.iterdir()):
            return []
        raise RunError(f"{directory} holds files but no run ({CONFIG} is missing): choose another with --run-dir.")
    if not has_checkpoint(directory):
        return []  # Without a checkpoint nothing is lost, so a mistake in the config can still be corrected.
    if changed := differences(from_json((directory / CONFIG).read_text(encoding="utf-8")), config):
        raise RunError(
            f"{directory} holds a run of another config ({'; '.join(changed)}): resume it with its own settings "
            "(optimizer.epochs may grow), or choose another directory with --run-dir, where --pretraining.source "
            f"{directory} would start from its weights."
        )
    return _edited_sets(directory, config, data)


def has_checkpoint(directory: Path) -> bool:
    """Returns whether the run in `directory` has begun, so that its settings cannot change."""
    return (directory / CONFIG).is_file() and any((directory / CHECKPOINTS).glob("[0-9]*"))


def extension_notes(directory: Path, config: RunConfig, steps_per_epoch: int) -> Iterator[str]:
    """Yields a sentence if the run in `directory` has fewer epochs than `config`, and others on what this changes."""
    if not (directory / CONFIG).is_file():
        return
    earlier = from_json((directory / CONFIG).read_text(encoding="utf-8")).optimizer
    before, epochs, last = earlier.epochs, config.optimizer.epochs, config.aggregation.last
    if epochs > before:
        yield f"the run of {before} epochs is continued up to epoch {epochs}"
        if not same_rates(earlier, config.optimizer, steps_per_epoch):
            yield (
                f"the schedule {config.optimizer.schedule} depends on the number of epochs: those so far were trained "
                f"with the learning rates of a run of {before}, so the result is not that of a run started with "
                f"{epochs} epochs"
            )
        if last and last < epochs:
            yield (
                f"the weight average ends with epoch {last}: use --aggregation.last 0 to average up to the last epoch"
            )


def _edited_sets(directory: Path, config: RunConfig, data: DataSets) -> list[str]:
    current = data.identity()
    recorded = json.loads((directory / DATA).read_text(encoding="utf-8")) if (directory / DATA).is_file() else {}
    edited = [name for name in current if recorded.get(name) != current[name]]
    if edited and config.data.edited == "stop":
        raise RunError(
            f"{directory} was started on other data (changed: {', '.join(edited)}): choose another directory with "
            "--run-dir, restore the data, or accept the edited data with --data.edited accept."
        )
    for name in edited:
        for size in ("clips", "classes"):
            before, now = recorded.get(name, {}).get(size), current[name].get(size)
            if before != now:
                raise RunError(
                    f"{directory} was started with {before} {size} ({name}), and there are {now} now, which makes it "
                    "another run: choose another directory with --run-dir, and start from these weights with "
                    f"--pretraining.source {directory}."
                )
    return edited


def write_metadata(directory: Path, config: RunConfig, data: DataSets) -> None:
    """Writes the class list, the identity of the data, and last the config: a directory with a config has them all."""
    if distributed.is_primary():
        _delete_temporary_files(directory)
        data.vocabulary.write(directory / LABELS)
        tables.write_text(directory / DATA, json.dumps(data.identity(), indent=1) + "\n")
        tables.write_text(directory / CONFIG, to_json(config))
    distributed.barrier("metadata")


def _delete_temporary_files(directory: Path) -> None:
    """Deletes temporary files and directories of killed processes, ``.NAME.PID``."""
    for parent in (directory, directory / "models", directory / "scores"):
        for path in parent.glob(".*.[0-9]*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Creates the run directory if needed, and locks it for this training. The lock ends with the process.

    The primary process locks it for all. Raises RunError, or PeerError in the other processes, if another training has
    locked it.
    """
    lock = FileLock(directory / LOCK, timeout=0)
    with distributed.agree():
        if distributed.is_primary():
            _acquire(lock, directory)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    owner = directory / LOCK_OWNER
    try:
        with contextlib.suppress(RuntimeError):  # filelock raises one where the file system has no locks.
            lock.acquire()
    except Timeout as error:
        name = f" ({owner.read_text(encoding='utf-8')})" if owner.is_file() else ""
        raise RunError(
            f"{directory} is in use by another training{name}: wait until it has ended, or choose another directory "
            "with --run-dir."
        ) from error
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
