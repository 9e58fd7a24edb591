"""The data sets of a training run: vocabulary, training set, and validation and evaluation sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.audio.decode import StrPath
from psla_jax.config import ConfigError, DataConfig, FrontendConfig, is_exclusive
from psla_jax.data.datafile import Datafile
from psla_jax.data.demo import dataset
from psla_jax.data.validate.preflight import ClipProblem, find_unreadable_clips
from psla_jax.vocabulary.vocabulary import Vocabulary

TRAIN, VALIDATION, EVALUATION = "train", "validation", "evaluation"
DEMO = "demo:"
"""Prefix of paths to the embedded demo set, such as ``demo:train``."""
MAX_PROBLEMS_SHOWN = 5
"""Number of unreadable clips that an error names; the others are counted."""


class DataError(ValueError):
    """Data that a run cannot use; the message names the files and the remedy."""


@dataclass(frozen=True)
class DataSets:
    """The data sets of a run."""

    vocabulary: Vocabulary
    train: Datafile
    held_out: dict[str, Datafile]
    """The sets to score by name, ``validation`` before ``evaluation``; at least one."""
    loss: str = "bce"
    """``optimizer.loss``, with ``auto`` resolved to ``bce`` or ``ce`` by the training datafile."""
    teacher: Mapping[str, Any] = field(default_factory=dict)
    """Identity of a teacher's scores of the training set; empty if there are none."""

    @property
    def primary(self) -> str:
        """Name of the set that is scored after every epoch: validation if there is one, else evaluation."""
        return next(iter(self.held_out))

    def all(self) -> dict[str, Datafile]:
        """All sets by name, including the training set."""
        return {TRAIN: self.train, **self.held_out}

    def identity(self) -> dict[str, Any]:
        """Hashes and sizes of the datafiles and the vocabulary, to detect whether the data of a run have changed."""
        vocabulary = hashlib.sha256(json.dumps(self.vocabulary.to_json()).encode()).hexdigest()
        sets = {name: {"sha256": data.sha256, "clips": len(data)} for name, data in self.all().items()}
        teacher = {"teacher": dict(self.teacher)} if self.teacher else {}
        return {"vocabulary": {"sha256": vocabulary, "classes": len(self.vocabulary)}, **sets, **teacher}

    def shared(self, directory: Path) -> DataSets:
        """Returns a copy whose arrays are memory-mapped from `directory`, so that loader processes share them."""
        held_out = {name: data.share(directory) for name, data in self.held_out.items()}
        return replace(self, train=self.train.share(directory), held_out=held_out)


def locate(path: str, log: Callable[[str], None] | None = None) -> str:
    """Returns `path`, or for ``demo:NAME`` the path of a file of the embedded demo set, synthesised on first use."""
    return dataset.locate(path.removeprefix(DEMO), on_start=log) if path.startswith(DEMO) else path


def read_datafile(path: StrPath, labels: StrPath | Vocabulary) -> Datafile:
    """Reads a datafile, or a set of the embedded demo data such as ``demo:train``.

    Args:
        path: the datafile.
        labels: its classes: a vocabulary, a label file, or ``audioset``, ``fsd50k`` or ``demo``.

    Raises:
        ConfigError: `labels` is empty.
        DatafileError, VocabularyError: a file cannot be read.
    """
    if not labels:
        raise ConfigError(f"labels is empty: name the label file of {os.fspath(path)}, or pass a Vocabulary.")
    vocabulary = labels if isinstance(labels, Vocabulary) else Vocabulary.read(locate(os.fspath(labels)))
    return Datafile.read(locate(os.fspath(path)), vocabulary)


def data_notes(data: Datafile, *, held_out: bool) -> list[str]:
    """Returns sentences on a datafile that explain or affect results: the directory of its paths, and repeats."""
    notes = []
    if data.root:
        notes.append(
            f"{data.source}: its relative paths are in the working directory, {data.root}, instead of the folder of "
            "the datafile, where they are looked up first"
        )
    repeats = len(data) - len({os.path.normpath(data.clip_id(i)) for i in range(len(data))}) if held_out else 0
    if repeats:
        notes.append(
            f"{data.source}: {repeats:,} of {len(data):,} records list a clip again, which counts several times in "
            "metrics"
        )
    return notes


def load(config: DataConfig, loss: str, log: Callable[[str], None] | None = None) -> DataSets:
    """Reads the vocabulary and the datafiles of a config's section ``data``; `loss` is ``optimizer.loss``.

    `log` receives a line when the embedded demo set is synthesised, and the notes of :func:`data_notes`.

    Raises:
        ConfigError, VocabularyError, DatafileError: a required path is empty, or a file cannot be read.
        DataError: the training set has no label, or the loss is ``ce`` and a clip does not have exactly one label.
    """
    for required in ("train", "labels"):
        if not getattr(config, required):
            raise ConfigError(f"data.{required} is empty: give a file with --data.{required} FILE.")
    if not config.validation and not config.evaluation:
        raise ConfigError("data.validation and data.evaluation are both empty: give at least one of them.")
    vocabulary = Vocabulary.read(locate(config.labels, log))
    paths = {name: getattr(config, name) for name in (TRAIN, VALIDATION, EVALUATION)}
    sets = {name: Datafile.read(locate(path, log), vocabulary) for name, path in paths.items() if path}
    notes = [note for name, data in sets.items() for note in data_notes(data, held_out=name != TRAIN)]
    if log is not None:
        for note in notes:
            log(note)
    if not sets[TRAIN].class_counts().any():
        raise DataError(f"no clip of the training set {sets[TRAIN].source} has a label: label its clips.")
    train = sets.pop(TRAIN)
    resolved = ("ce" if train.exclusive else "bce") if loss == "auto" else loss
    if is_exclusive(resolved):
        reason = f"optimizer.loss {resolved} requires exactly one"
        if loss == "auto":
            reason = f'{train.source} declares its classes as exclusive ("classes": "exclusive")'
        for data in (train, *sets.values()):
            require_single_labels(data, reason, "correct the labels, or use --optimizer.loss bce")
    return DataSets(vocabulary, train, sets, resolved)


def require_single_labels(data: Datafile, reason: str, remedy: str) -> None:
    """Raises DataError, with `reason` and `remedy` in its message, if a clip does not have exactly one label."""
    counts = np.diff(data.label_offsets)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        clip = int(wrong[0])
        raise DataError(f"{data.source} gives {data.audio(clip)} {counts[clip]} labels, but {reason}: {remedy}.")


def check_clips(
    sets: DataSets, config: DataConfig, log: Callable[[str], None], frontend: FrontendConfig | None = None
) -> None:
    """Looks up every clip and reads up to ``data.preflight`` clips of each set, before training.

    `log` receives a line for each clip that will be skipped, for damaged ones, of which the rest is used, and for a set
    with clips of a lower sample rate than the features of `frontend` need.

    Raises:
        DataError: a clip cannot be read and ``data.unreadable`` is ``stop``, or no clip of a set can be read.
    """
    frontend = frontend or FrontendConfig()
    for name, data in sets.all().items():
        damaged: list[ClipProblem] = []
        rates = Counter[int]()
        problems = find_unreadable_clips(
            data, limit=config.preflight, channel=config.channel, name=name, damaged=damaged, rates=rates
        )
        if problems and (config.unreadable == "stop" or len(problems) == len(data)):
            raise DataError(_problem_text(name, data, problems))
        for problem in problems:
            log(f"skipped, {name} set: {problem.path} {problem.reason}")
        for defect in damaged[:MAX_PROBLEMS_SHOWN]:
            log(f"damaged, {name} set: {defect.path} {defect.reason}")
        if len(damaged) > MAX_PROBLEMS_SHOWN:
            log(f"damaged, {name} set: {len(damaged) - MAX_PROBLEMS_SHOWN} more, which psla check lists")
        if note := _rate_note(rates, frontend):
            log(f"{name} set: {note}")


def _rate_note(rates: Counter[int], frontend: FrontendConfig) -> str:
    """Returns a sentence on clips without the upper frequencies of the features; empty if there are none."""
    needed = 2 * frontend.top_hz
    low = {rate: count for rate, count in rates.most_common() if rate < needed}
    if not low:
        return ""
    listed = ", ".join(f"{count:,} at {rate} Hz" for rate, count in list(low.items())[:MAX_PROBLEMS_SHOWN])
    return (
        f"{sum(low.values()):,} of {rates.total():,} clips have a lower sample rate than the {needed:g} Hz of the "
        f"features ({listed}) and nothing above half of it, which the model may learn to recognise: use recordings of "
        f"{needed:g} Hz or more that were not upsampled, or a lower frontend.sample_rate or frontend.high_hz"
    )


def _problem_text(name: str, data: Datafile, problems: list[ClipProblem]) -> str:
    shown = "; ".join(f"{p.path} {p.reason.rstrip('.')}" for p in problems[:MAX_PROBLEMS_SHOWN])
    more = f"; and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
    count = "a clip" if len(problems) == 1 else f"{len(problems)} clips"
    return (
        f"the {name} set {data.source} has {count} that cannot be used: {shown}{more}. Repair the files, remove them "
        "from the datafile, or train without them: --data.unreadable skip."
    )
