"""The data of a run: vocabulary, training set and the sets it is scored on, checked before a step is taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.config import ConfigError, DataConfig, Loss
from psla_jax.data import demo
from psla_jax.data.check import Problem, preflight
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Vocabulary

TRAIN, VALIDATION, EVALUATION = "train", "validation", "evaluation"
DEMO = "demo:"
"""Prefix of paths that mean a part of the embedded data set, such as ``demo:train``."""
SHOWN = 5
"""Problems named in an error; the rest are counted."""


class DataError(ValueError):
    """Data that a run cannot use; the message names the files and the remedy."""


@dataclass(frozen=True)
class DataSets:
    """What a run trains on and is scored on.

    Attributes:
        vocabulary: the classes.
        train: the training set.
        held_out: the sets to score, ``validation`` before ``evaluation``; at least one of them.
        loss: what ``optimizer.loss`` comes to with these data: ``bce`` or ``ce``.
    """

    vocabulary: Vocabulary
    train: Datafile
    held_out: dict[str, Datafile]
    loss: Loss = "bce"

    @property
    def primary(self) -> str:
        """The set scored after every epoch: validation, or evaluation where there is none."""
        return next(iter(self.held_out))

    def all(self) -> dict[str, Datafile]:
        """Every set by its name."""
        return {TRAIN: self.train, **self.held_out}

    def identity(self) -> dict[str, Any]:
        """What the results depend on: hash and size of every datafile, hash of the vocabulary."""
        vocabulary = hashlib.sha256(json.dumps(self.vocabulary.to_json()).encode()).hexdigest()
        sets = {name: {"sha256": data.sha256, "clips": len(data)} for name, data in self.all().items()}
        return {"vocabulary": {"sha256": vocabulary, "classes": len(self.vocabulary)}, **sets}

    def shared(self, directory: Path) -> DataSets:
        """The same, with the arrays mapped from `directory`, so that loader processes share them."""
        held_out = {name: data.share(directory) for name, data in self.held_out.items()}
        return replace(self, train=self.train.share(directory), held_out=held_out)


def locate(path: str, say: Callable[[str], None] | None = None) -> str:
    """The file that a path in a config means; ``demo:NAME`` is a part of the embedded data set, made on first use."""
    return demo.locate(path.removeprefix(DEMO), on_start=say) if path.startswith(DEMO) else path


def load(config: DataConfig, loss: Loss, say: Callable[[str], None] | None = None) -> DataSets:
    """Reads vocabulary and datafiles.

    Raises:
        ConfigError, DataError, DatafileError, VocabularyError: naming the field or file, and the remedy.
    """
    for field in ("train", "labels"):
        if not getattr(config, field):
            raise ConfigError(f"data.{field} is empty: name a file with --data.{field} FILE.")
    if not config.validation and not config.evaluation:
        raise ConfigError("data.validation and data.evaluation are both empty: name at least one set to score.")
    vocabulary = Vocabulary.read(locate(config.labels, say))
    paths = {name: getattr(config, name) for name in (TRAIN, VALIDATION, EVALUATION)}
    sets = {name: Datafile.read(locate(path, say), vocabulary) for name, path in paths.items() if path}
    if not sets[TRAIN].class_counts().any():
        raise DataError(
            f"no clip of the training set {sets[TRAIN].source} has a label: there is nothing to learn from."
        )
    train = sets.pop(TRAIN)
    settled = ("ce" if train.exclusive else "bce") if loss == "auto" else loss
    if settled == "ce":
        for data in (train, *sets.values()):
            _require_single_labels(data, train if loss == "auto" else None)
    return DataSets(vocabulary, train, sets, settled)


def _require_single_labels(data: Datafile, said_by: Datafile | None) -> None:
    """Raises DataError for a clip with no label or several, which is against what a datafile or the user said."""
    counts = np.diff(data.label_offsets)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        clip = int(wrong[0])
        said = "optimizer.loss ce wants exactly one per clip"
        if said_by is not None:
            said = f"{said_by.source} says that its classes exclude each other, so correct the labels"
        raise DataError(
            f"{data.source} gives {data.wav(clip)} {counts[clip]} labels: {said}, or use --optimizer.loss bce."
        )


def check_clips(sets: DataSets, config: DataConfig, say: Callable[[str], None]) -> None:
    """Looks up every clip and reads a share of them, before training.

    Raises:
        DataError: if one cannot be read and ``data.unreadable`` is ``stop``.
    """
    for name, data in sets.all().items():
        problems = preflight(data, limit=config.preflight, channel=config.channel, name=name)
        if problems and (config.unreadable == "stop" or len(problems) == len(data)):
            raise DataError(_problem_text(name, data, problems))
        for problem in problems:
            say(f"set aside, {name} set: {problem.path} {problem.reason}")


def _problem_text(name: str, data: Datafile, problems: list[Problem]) -> str:
    shown = "; ".join(f"{p.path} {p.reason.rstrip('.')}" for p in problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    many = "a clip that cannot" if len(problems) == 1 else f"{len(problems)} clips that cannot"
    return (
        f"the {name} set {data.source} has {many} be used: {shown}{more}. Mend the files or take them out of the "
        "datafile, or train without them: --data.unreadable skip."
    )
