"""Scores of a teacher for the augmented rows of a training, as :mod:`psla_jax.training.teach` stores them.

A directory has the scores of every (epoch, sample): the largest ones with their classes, and the mean of the others.
The rows are not stored: they are functions of the settings in ``teach.json``, of which a training must have the same.
This module does not import JAX.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.data.teacher import FIELD, TeacherError, soften

FORMAT = 1
CARD, PROGRESS = "teach.json", "progress.json"
ARRAYS = {"indices": np.uint16, "values": np.float16, "rest": np.float16}
"""Arrays of the directory and their types; ``indices`` and ``values`` have `top` columns, ``rest`` has one."""


@dataclass(frozen=True)
class Card:
    """What a directory holds."""

    draws: Mapping[str, Any]
    """Settings that determine the rows, by name."""
    models: tuple[str, ...]
    """Fingerprints of the models of the teacher."""
    top: int
    """Number of scores that are stored of each row."""
    known: tuple[bool, ...]
    """Whether the teacher has a class, for every class; the scores of others are the labels."""
    epochs: int
    samples: int
    """Number of rows of an epoch."""

    def to_json(self) -> str:
        """Returns the content of ``teach.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, directory: Path) -> Card:
        """Reads the card of a directory; raises TeacherError if there is none."""
        try:
            values: dict[str, Any] = json.loads((directory / CARD).read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("of another version")
            values |= {name: tuple(values[name]) for name in ("models", "known")}  # JSON has lists.
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TeacherError(
                f"{FIELD} is {str(directory)!r}, a folder without scores of psla teach ({CARD}): name a file, or "
                "such a folder."
            ) from error


def identity(directory: Path) -> Mapping[str, Any]:
    """Returns the hash of what a directory holds; raises TeacherError if it has no scores."""
    return {"sha256": hashlib.sha256(Card.read(directory).to_json().encode()).hexdigest()}


def read_progress(directory: Path) -> int:
    """Returns the number of steps whose scores a directory has."""
    try:
        return int(json.loads((directory / PROGRESS).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@dataclass(frozen=True)
class TaughtScores:
    """Softened scores of every row of a training, memory-mapped. Its pickled copy has no arrays."""

    directory: str
    card: Card
    temperature: float
    exclusive: bool

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        paths = {name: os.path.join(self.directory, f"{name}.npy") for name in ARRAYS}
        return {name: np.load(path, mmap_mode="r").view(np.ndarray) for name, path in paths.items()}

    def scores(self, epoch: int, sample: int, labels: np.ndarray) -> np.ndarray:
        """Returns the scores of a row as float32 ``(classes,)``; its `labels` if the teacher could not read the clip.

        All are those of the augmented row, also after augmentation in the step.
        """
        row = epoch * self.card.samples + sample
        rest = self._arrays["rest"][row]
        if np.isnan(rest):
            return labels
        scores = np.full(len(self.card.known), rest, np.float32)
        scores[self._arrays["indices"][row]] = self._arrays["values"][row]
        return np.where(
            self.card.known, soften(scores, self.temperature, exclusive=self.exclusive, logits=False), scores
        )


def require_same_draws(directory: Path, card: Card, draws: Mapping[str, Any], epochs: int, steps: int) -> None:
    """Raises TeacherError unless a directory has the scores of exactly the rows of a training.

    Args:
        directory: the directory.
        card: its card.
        draws: settings of the training that determine its rows.
        epochs: number of epochs of the training.
        steps: number of its steps.
    """
    changed = [f"{k}: {card.draws.get(k)!r} -> {v!r}" for k, v in draws.items() if card.draws.get(k) != v]
    if changed:
        raise TeacherError(
            f"{FIELD} is {str(directory)!r}, whose rows were drawn by other settings ({'; '.join(changed)}): train "
            "with the same settings, or run psla teach with these."
        )
    if epochs > card.epochs or read_progress(directory) < steps:
        done = f"{read_progress(directory):,} of the {steps:,} steps of this training"
        raise TeacherError(
            f"{FIELD} is {str(directory)!r}, which has {done}: run psla teach with as many epochs (optimizer.epochs), "
            "to its end."
        )
