"""Enhancement by models that have not seen the clip: ``psla crossfit``.

A model scores the clips that it was trained on high for the labels they have and low for those they lack: it has
learned the errors that enhancement is to find. So the training set is cut into folds, a model is trained on all but one
of them, by the config's own recipe, and scores the one left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from psla_jax import enhancement, experiment
from psla_jax.config import KINDS, Kind, RunConfig, Threshold
from psla_jax.data import datafile, sets
from psla_jax.data.clips import require_distinct
from psla_jax.data.datafile import Datafile
from psla_jax.data.sets import EVALUATION, DataSets
from psla_jax.journal import Journal
from psla_jax.ontology import Ontology, Vocabulary
from psla_jax.results import write_text
from psla_jax.scores import Scores

FOLDS = "folds.json"
SCORES = Path("scores") / "train_crossfit.npz"
"""Where the scores of the whole training set are in the directory of a cross-fit."""
SUFFIX = "-crossfit"
Member = Literal["ensemble", "average"]


class CrossfitError(ValueError):
    """A cross-fit that cannot be done as asked; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """What to cross-fit and what to make of it. Fields as in ``psla crossfit``."""

    config: RunConfig
    ontology: str
    folds: int = 3
    model: Member = "ensemble"
    threshold: tuple[Threshold, ...] = ("mean",)
    type: tuple[Kind, ...] = KINDS
    out: str = ""
    force: bool = False

    @property
    def directory(self) -> Path:
        """Where folds, their runs and the scores are: beside the run directory of the config."""
        return Path(self.config.run_dir + SUFFIX)

    def enhancement(self) -> enhancement.Request:
        """What is done with the scores."""
        data = self.config.data
        return enhancement.Request(
            data.train, str(self.directory / SCORES), data.labels, self.ontology, self.threshold, self.type, self.out,
            self.force,
        )  # fmt: skip


def run(request: Request) -> tuple[str, ...]:
    """Trains and scores what is missing, then enhances; killed at any moment and started again, it goes on.

    Returns:
        The paths of the datafiles written.

    Raises:
        ValueError: one of this package's own, for settings or data that cannot be used, before any training step.
        TrainingError: the loss of a fold is not finite.
    """
    journal = Journal()
    request.enhancement().output().require_place()
    Ontology.read(sets.locate(request.ontology, journal.say))
    data = sets.load(request.config.data, request.config.optimizer.loss, journal.say)
    require_distinct(map(data.train.wav, range(len(data.train))), data.train.source)
    scores(request, data, journal)
    return enhancement.run(request.enhancement(), journal)


def scores(request: Request, data: DataSets, journal: Journal) -> Scores:
    """The scores of the training set, each clip's from a model that has not seen it; also left in :data:`SCORES`."""
    fold_of = assign_folds(data.train, request.folds, seed=request.config.seed)
    _open(request, data)
    once = int((data.train.class_counts() == 1).sum())
    if once:
        journal.say(f"{once} classes have one training clip, which is scored by a model that has not heard the class")
    held_out = [_fold(request, data, fold_of, fold, journal) for fold in range(request.folds)]
    together = _in_order_of(data.train, held_out, data.vocabulary)
    together.save(request.directory / SCORES)
    return together


def assign_folds(data: Datafile, folds: int, *, seed: int) -> np.ndarray:
    """The fold of every clip, ``(clips,)``: folds of about one size, each class spread over them evenly.

    The rarest class is dealt out first, each of its clips to the fold that has the fewest of it (iterative
    stratification: Sechidis, Tsoumakas and Vlahavas, 2011).

    Raises:
        CrossfitError: fewer than two folds, or more than clips.
    """
    if not 2 <= folds <= len(data):
        raise CrossfitError(f"folds is {folds}: use 2 or more, up to the {len(data):,} clips of {data.source}.")
    order = np.random.default_rng([seed, folds]).permutation(len(data))
    rarity = data.class_counts()
    has: list[list[int]] = [[] for _ in range(data.num_classes + 1)]
    for clip in order.tolist():
        for index in data.labels(clip).tolist() or [data.num_classes]:
            has[index].append(clip)
    fold_of = np.full(len(data), -1)
    counts = np.zeros((folds, data.num_classes + 1), np.int64)  # the last column: clips without a label
    sizes = np.zeros(folds, np.int64)
    for index in [*np.argsort(rarity, kind="stable"), data.num_classes]:
        for clip in has[index]:
            if fold_of[clip] < 0:
                fold = int(np.lexsort((sizes, counts[:, index]))[0])
                fold_of[clip] = fold
                counts[fold, data.labels(clip)] += 1
                counts[fold, -1] += not len(data.labels(clip))
                sizes[fold] += 1
    return fold_of


def _open(request: Request, data: DataSets) -> None:
    """Makes the directory, or finds it with the same folds in it."""
    mine = {"folds": request.folds, "seed": request.config.seed, "train": data.train.sha256}
    file = request.directory / FOLDS
    try:
        there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        there = "no JSON"
    if there is None and request.directory.is_dir() and any(request.directory.iterdir()):
        raise CrossfitError(
            f"{request.directory} holds files but no cross-fit ({FOLDS} is missing): choose another --run-dir."
        )
    if there not in (None, mine):
        raise CrossfitError(
            f"{request.directory} holds a cross-fit of other folds, another seed or other training data: choose "
            "another --run-dir, or start it as it was."
        )
    request.directory.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(mine, indent=1) + "\n")


def _fold(request: Request, data: DataSets, fold_of: np.ndarray, fold: int, journal: Journal) -> Scores:
    """Trains on the other folds, with this one as the evaluation set: the run scores it, and chooses nothing on it."""
    name = f"fold_{fold + 1}"
    parts = {"train": fold_of != fold, "held_out": fold_of == fold}
    paths = {part: str(request.directory / f"{name}_{part}.json") for part in parts}
    for part, chosen in parts.items():
        _write_part(data.train, data.vocabulary, np.flatnonzero(chosen), paths[part])
    journal.say(
        f"fold {fold + 1} of {request.folds}: {parts['train'].sum():,} clips to train on, "
        f"{parts['held_out'].sum():,} to score"
    )
    config = request.config
    own = replace(config.data, train=paths["train"], evaluation=paths["held_out"])
    directory = request.directory / name
    experiment.train(replace(config, run_dir=str(directory), data=own))
    return Scores.load(directory / "scores" / f"{EVALUATION}_{request.model}.npz")


def _write_part(data: Datafile, vocabulary: Vocabulary, clips: np.ndarray, path: str) -> None:
    mids = vocabulary.mids
    datafile.write(path, ((data.wav(clip), [mids[i] for i in data.labels(clip)]) for clip in clips.tolist()))


def _in_order_of(data: Datafile, parts: list[Scores], vocabulary: Vocabulary) -> Scores:
    """The parts as one, in the order of the datafile."""
    clips = np.concatenate([part.clips for part in parts])
    place = {data.clip_id(clip): clip for clip in range(len(data))}
    order = np.argsort([place[clip] for clip in clips.tolist()])
    return Scores(
        clips[order],
        np.concatenate([part.scores for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        tuple(clip for part in parts for clip in part.skipped),
        vocabulary.mids,
    )
