"""The run directory: whose it is, what it was started with, and that one training at a time works in it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from psla_jax import processes, results
from psla_jax.config import RunConfig, differences, from_json, to_json
from psla_jax.data.sets import DataSets
from psla_jax.locks import Held, locked

CONFIG, DATA, SUMMARY, LOG, LABELS = "config.json", "data.json", "summary.json", "log.txt", "labels.csv"
CHECKPOINTS, LOCK = "checkpoints", ".lock"
BEFORE_CONFIG = (LABELS, DATA)
"""What a run killed in its first moments may have left behind."""


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message names it and the remedy."""


def check(directory: Path, config: RunConfig, data: DataSets) -> list[str]:
    """Raises RunError if `directory` holds another run, or something that is no run.

    Returns:
        The sets that were edited since the run was started, where ``data.edited`` says that this is meant.
    """
    if not directory.exists():
        return []
    if not directory.is_dir():
        raise RunError(f"{directory} is a file: choose another place with --run-dir.")
    if not (directory / CONFIG).is_file():
        if all(entry.name in BEFORE_CONFIG or entry.name.startswith(".") for entry in directory.iterdir()):
            return []
        raise RunError(f"{directory} holds files but no run ({CONFIG} is missing): choose another with --run-dir.")
    if not any((directory / CHECKPOINTS).glob("[0-9]*")):
        return []  # Nothing was learned there yet, so a config that turned out wrong may be mended.
    changed = differences(from_json((directory / CONFIG).read_text(encoding="utf-8")), config)
    if changed:
        raise RunError(
            f"{directory} holds a run of another config ({'; '.join(changed)}): choose another directory with "
            "--run-dir, or start it with its own settings."
        )
    return _edited(directory, config, data)


def _edited(directory: Path, config: RunConfig, data: DataSets) -> list[str]:
    found = data.identity()
    known = json.loads((directory / DATA).read_text(encoding="utf-8")) if (directory / DATA).is_file() else {}
    edited = [name for name in found if known.get(name) != found[name]]
    if not edited:
        return []
    if config.data.edited == "stop":
        raise RunError(
            f"{directory} was started on other data (changed: {', '.join(edited)}): choose another directory with "
            "--run-dir, restore the data, or go on with what they are now: --data.edited accept."
        )
    for name in edited:
        for size in ("clips", "classes"):
            before, now = known.get(name, {}).get(size), found[name].get(size)
            if before != now:
                raise RunError(
                    f"{directory} was started with {before} {size} ({name}) and would go on with {now}, which is "
                    f"another run: choose another directory with --run-dir, and --pretraining.source {directory}."
                )
    return edited


def settle(directory: Path, config: RunConfig, data: DataSets) -> None:
    """Writes down what the run is; a directory with a config has everything that comes before it."""
    if processes.first():
        _sweep(directory)
        data.vocabulary.write(directory / LABELS)
        results.write_text(directory / DATA, json.dumps(data.identity(), indent=1) + "\n")
        results.write_text(directory / CONFIG, to_json(config))
    processes.barrier("settled")


def _sweep(directory: Path) -> None:
    """Removes what a killed start wrote aside and never renamed: ``.NAME.PID``."""
    for place in (directory, directory / "models", directory / "scores"):
        for left in place.glob(".*.[0-9]*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Holds the run directory, which it makes if need be. The lock goes with the process, however that ends.

    Raises:
        RunError: another training holds it.
    """
    if processes.first():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with locked(directory / LOCK):
                processes.barrier("locked")
                yield
        except Held as holder:
            raise RunError(
                f"{directory} is in use by another training{f' ({holder})' if str(holder) else ''}: wait until it has "
                "ended, or choose another directory with --run-dir."
            ) from holder
    else:
        processes.barrier("locked")
        yield
