"""Cross-fitted label enhancement (``psla crossfit``): every clip is scored by a model that was not trained on it.

A model has fitted the labels of its training clips, including the errors that enhancement is meant to find, so its
scores of these clips are of little use. The training set is therefore divided into folds; for each fold, a model is
trained on the other folds with the recipe of the config, and scores the fold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from psla_jax.audio.segments import split_fragment
from psla_jax.config import KINDS, Kind, RunConfig, Threshold
from psla_jax.data import datafile, datasets
from psla_jax.data.clip_ids import require_distinct
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import EVALUATION, DataSets
from psla_jax.data.folds import assign_folds, records
from psla_jax.evaluation.scores import Scores
from psla_jax.evaluation.tables import write_text
from psla_jax.labeling import enhance
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger
from psla_jax.training import loop
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

FOLDS_FILE = "folds.json"
SCORES_FILE = Path("scores") / "train_crossfit.npz"
"""Scores of the whole training set, relative to the cross-fit directory."""
SUFFIX = "-crossfit"
"""Suffix of the cross-fit directory, appended to the run directory of the config."""
Member = Literal["ensemble", "average"]
Part = Literal["train", "held_out"]


class CrossfitError(ValueError):
    """A cross-fit that cannot be carried out; the message names the remedy."""


@dataclass(frozen=True)
class Request:
    """Input and output of a cross-fit; the fields are the options of ``psla crossfit``."""

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
        """The directory of the folds, their runs and the scores, beside the run directory of the config."""
        return Path(f"{Path(self.config.run_dir)}{SUFFIX}")

    def enhancement(self) -> enhance.Request:
        """Returns the enhancement by the cross-fitted scores."""
        data = self.config.data
        return enhance.Request(
            data.train, str(self.directory / SCORES_FILE), data.labels, self.ontology, self.threshold, self.type,
            self.out, self.force,
        )  # fmt: skip


def run(request: Request) -> tuple[str, ...]:
    """Trains and scores all folds, enhances the training set and returns the paths of the enhanced datafiles.

    An interrupted cross-fit can be resumed. With several processes, all train together; the primary one enhances, and
    the others return no paths.

    Raises:
        ValueError: settings or data cannot be used (a subclass of this package, raised before training starts).
        TrainingError: the loss of a fold is not finite.
    """
    with distributed.session(request.config.distributed):
        logger = Logger(silent=not distributed.is_primary())
        with distributed.agree():
            request.enhancement().resolved().check_overwrite()
            Ontology.read(datasets.locate(request.ontology, logger.info))
            data = datasets.load(request.config.data, str(request.config.optimizer.loss), logger.info)
            require_distinct(map(data.train.clip_id, range(len(data.train))), data.train.source)
        crossfit_scores(request, data, logger)
        with distributed.agree():
            return enhance.run(request.enhancement(), logger) if distributed.is_primary() else ()


def crossfit_scores(request: Request, data: DataSets, logger: Logger) -> Scores:
    """Returns the scores of the training set, each by a model not trained on the clip; writes :data:`SCORES_FILE`."""
    labels = [data.train.labels(clip).tolist() for clip in range(len(data.train))]
    classes, seed = len(data.vocabulary), request.config.seed
    recordings = _recordings(data.train, request.folds, logger)
    fold_of_clip = assign_folds(labels, request.folds, num_classes=classes, seed=seed, groups=recordings)
    with distributed.agree():
        if distributed.is_primary():
            _prepare_directory(request, data)
            _write_folds(request, data, fold_of_clip)
    single = int((data.train.class_counts() == 1).sum())
    if single:
        logger.info(f"classes with one training clip, which a model without the class scores: {single}")
    folds = [_train_fold(request, fold_of_clip, fold, logger) for fold in range(request.folds)]
    scores = _merge(folds, data.train, data.vocabulary)
    if distributed.is_primary():
        scores.save(request.directory / SCORES_FILE)
    return scores


def _recordings(data: Datafile, folds: int, logger: Logger) -> list[str] | None:
    """Returns the recording of each segment, which folds must not divide; None if there are too few of them."""
    names = (split_fragment(data.clip_id(clip)) for clip in range(len(data)))
    recordings = [recording if times else "" for recording, times in names]
    if 0 < len(set(recordings)) < folds and any(recordings):
        logger.info(
            "segments of a recording are in several folds, so models score recordings that they were trained on"
        )
        return None
    return recordings


def _prepare_directory(request: Request, data: DataSets) -> None:
    """Creates the cross-fit directory, or checks that an existing one has the same folds."""
    settings = {"folds": request.folds, "seed": request.config.seed, "train": data.train.sha256}
    file = request.directory / FOLDS_FILE
    try:
        existing = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        existing = "not JSON"
    if existing is None and request.directory.is_dir() and any(request.directory.iterdir()):
        problem = f"holds files but no cross-fit ({FOLDS_FILE} is missing): choose another --run-dir."
        raise CrossfitError(f"{request.directory} {problem}")
    if existing not in (None, settings):
        raise CrossfitError(
            f"{request.directory} holds a cross-fit with other folds, another seed or other training data: choose "
            "another --run-dir, or restore the previous settings."
        )
    request.directory.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings, indent=1) + "\n")


def _fold_path(request: Request, fold: int, part: Part) -> str:
    return str(request.directory / f"fold_{fold + 1}_{part}.json")


def _write_folds(request: Request, data: DataSets, fold_of_clip: np.ndarray) -> None:
    """Writes the datafiles of every fold: the clips to train on, and those to score."""
    for fold in range(request.folds):
        parts: dict[Part, np.ndarray] = {"train": fold_of_clip != fold, "held_out": fold_of_clip == fold}
        for part, selected in parts.items():
            clips = records(data.train, data.vocabulary, np.flatnonzero(selected).tolist())
            datafile.write(_fold_path(request, fold, part), clips, exclusive=data.train.exclusive)


def _train_fold(request: Request, fold_of_clip: np.ndarray, fold: int, logger: Logger) -> Scores:
    """Trains on the other folds and scores this one as the evaluation set, on which nothing is selected."""
    size = int((fold_of_clip == fold).sum())
    trained_on = f"{len(fold_of_clip) - size:,} clips to train on"
    logger.info(f"fold {fold + 1} of {request.folds}: {trained_on}, {size:,} to score")
    directory = request.directory / f"fold_{fold + 1}"
    train, held_out = _fold_path(request, fold, "train"), _fold_path(request, fold, "held_out")
    fold_data = replace(request.config.data, train=train, evaluation=held_out)
    loop.train(replace(request.config, run_dir=str(directory), data=fold_data))
    return Scores.load(directory / "scores" / f"{EVALUATION}_{request.model}.npz")


def _merge(folds: list[Scores], data: Datafile, vocabulary: Vocabulary) -> Scores:
    """Returns the scores of all folds in the order of the datafile."""
    clips = np.concatenate([fold.clips for fold in folds])
    position = {data.clip_id(clip): clip for clip in range(len(data))}
    order = np.argsort([position[clip] for clip in clips.tolist()])
    return Scores(
        clips[order],
        np.concatenate([fold.scores for fold in folds])[order],
        np.concatenate([fold.labels for fold in folds])[order],
        tuple(clip for fold in folds for clip in fold.skipped),
        vocabulary.mids,
    )
