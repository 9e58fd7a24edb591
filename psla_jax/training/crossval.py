"""k-fold cross-validation (``psla crossval``), as results on ESC-50 and UrbanSound8K are reported.

A model is trained on all folds but one with the recipe of the config, and evaluated on that one; the result is the mean
over the folds. Nothing is selected on the fold that a model is evaluated on: the fold is the evaluation set of a run
without a validation set, and the epochs that are averaged are fixed by the config.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psla_jax.config import RunConfig
from psla_jax.data import datafile, datasets
from psla_jax.data.clip_ids import ClipIdError, require_distinct
from psla_jax.data.datafile import Datafile, DatafileError
from psla_jax.data.datasets import EVALUATION
from psla_jax.data.folds import FOLDER, FoldError, fold_files, records
from psla_jax.evaluation import tables
from psla_jax.evaluation.metrics import Metrics
from psla_jax.evaluation.tables import ACCURACY, ModelSummary
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger
from psla_jax.training import loop
from psla_jax.training.estimates import Estimate
from psla_jax.vocabulary.vocabulary import Vocabulary

SUFFIX = "-crossval"
"""Suffix of the directory of a cross-validation, appended to the run directory of the config."""
TABLE, SUMMARY = "crossval.csv", "crossval.json"
PROTOCOL = (
    "Each fold is evaluated by a model that was trained on the other folds. Nothing is selected on a fold: the epochs "
    "are fixed by the config."
)
SPREAD = "sample standard deviation over the folds"
_METRICS = {ACCURACY: ACCURACY, "mAP": "mAP", "mAUC": "AUC", "d_prime": "d'"}
"""Metrics of the summary, with their titles in the table on the screen."""
_COUNTS = ("num_clips", "num_scored")


@dataclass(frozen=True)
class FoldedData:
    """The folds of a data set."""

    vocabulary: Vocabulary
    folds: tuple[Datafile, ...]

    def write_train(self, path: Path, held_out: int) -> int:
        """Writes the clips of all folds but one as a datafile; returns their number."""
        others = [fold for number, fold in enumerate(self.folds) if number != held_out]
        clips = itertools.chain.from_iterable(records(fold, self.vocabulary, range(len(fold))) for fold in others)
        return datafile.write(path, clips, exclusive=others[0].exclusive)


@dataclass(frozen=True)
class ModelResult:
    """Metrics of a row of the summary, such as the weight average, on every fold."""

    name: str
    folds: tuple[Metrics, ...]

    def estimate(self, metric: str) -> Estimate:
        """Returns mean and spread of a field of :class:`psla_jax.evaluation.metrics.Metrics`."""
        return Estimate.of([getattr(metrics, metric) for metrics in self.folds])

    def metrics(self) -> list[str]:
        """Returns the names of the metrics to report: accuracy only if every clip has exactly one label."""
        return [name for name in _METRICS if name != ACCURACY or not any(math.isnan(m.accuracy) for m in self.folds)]


def crossval(config: RunConfig, folds: Sequence[str] = (), *, cache_programs: bool = False) -> list[ModelResult]:
    """Trains and evaluates a model per fold and writes the summary; resumes an unfinished cross-validation.

    The runs are in ``RUN_DIR-crossval/fold_1`` and so on; ``crossval.csv`` and ``crossval.json`` are beside them.

    Args:
        config: the config of the runs. Its training, validation and evaluation sets are not used.
        folds: the datafiles of the folds; by default those in the folder ``folds`` beside the training datafile.
        cache_programs: as for :func:`psla_jax.training.loop.train`.

    Returns:
        The rows of the summary: single model, weight average(s), checkpoint ensemble.

    Raises:
        FoldError: there are fewer than two folds, they share a clip, or the config selects epochs.
        ValueError, TrainingError, SaveError, PeerError, Stopped: as :func:`psla_jax.training.loop.train`.
    """
    with distributed.session(config.distributed):
        logger = Logger(silent=not distributed.is_primary())
        with distributed.agree():
            data = read_folds(config, folds, logger)
        directory = Path(f"{Path(config.run_dir)}{SUFFIX}")
        directory.mkdir(parents=True, exist_ok=True)
        numbers = range(len(data.folds))
        runs = [_train_fold(config, data, number, directory, logger, cache_programs) for number in numbers]
        results = _by_model(runs)
        if distributed.is_primary():
            names = [_name(fold) for fold in data.folds]
            _write(directory, names, results)
            _print(logger.console, f"cross-validation in {directory}", results)
        distributed.barrier("cross-validated")
        return results


def read_folds(config: RunConfig, paths: Sequence[str], logger: Logger) -> FoldedData:
    """Reads the folds; see :func:`crossval` for the arguments and errors."""
    if config.optimizer.patience:
        raise FoldError(
            f"optimizer.patience is {config.optimizer.patience}: without a validation set, training would end by the "
            "results on the fold that the model is evaluated on, so use 0."
        )
    if config.data.validation:
        logger.info("data.validation is not used: every fold is trained on all clips of the other folds")
    if (source := config.pretraining.source) not in ("", "imagenet"):
        logger.info(f"all folds start from {source}: results are too good if it was trained on clips of the folds")
    if len(paths) == 1:
        raise FoldError(f"{paths[0]} is a single fold: name at least two with --folds.")
    folder = Path(datasets.locate(config.data.train, logger.info)).parent / FOLDER
    paths = list(paths) or [str(path) for path in fold_files(folder)]
    if len(paths) < 2:
        remedy = "write two or more with psla prepare --folds, or name their datafiles with --folds"
        raise FoldError(f"{folder} holds {len(paths)} folds: {remedy}.")
    vocabulary = Vocabulary.read(datasets.locate(config.data.labels, logger.info))
    folds = tuple(Datafile.read(datasets.locate(path, logger.info), vocabulary) for path in paths)
    _require_consistent(folds)
    return FoldedData(vocabulary, folds)


def _require_consistent(folds: Sequence[Datafile]) -> None:
    """Raises FoldError unless names and clips of the folds differ and all or none of them have exclusive classes."""
    names = [_name(fold) for fold in folds]
    if len(set(names)) < len(names):
        raise FoldError(f"two folds have the same file name, among {', '.join(names)}: rename one of them.")
    try:
        require_distinct((fold.clip_id(i) for fold in folds for i in range(len(fold))), "all folds together")
    except ClipIdError as error:
        raise FoldError(
            f"a clip is in two folds, so that a model would be evaluated on it after training: {error}"
        ) from error
    if len({fold.exclusive for fold in folds}) > 1:
        odd = next(fold for fold in folds if not fold.exclusive)
        raise FoldError(
            f'{odd.source} does not declare "classes": "exclusive" as other folds do: add it, or remove it there.'
        )


def _name(fold: Datafile) -> str:
    return Path(fold.source).stem


def _train_fold(
    config: RunConfig, data: FoldedData, number: int, directory: Path, logger: Logger, cache_programs: bool
) -> list[ModelSummary]:
    """Trains on the other folds, and evaluates on this one; a finished run is only summarised again."""
    fold = data.folds[number]
    train = directory / f"{_name(fold)}_train.json"
    clips = distributed.on_primary(lambda: data.write_train(train, number), DatafileError)
    progress = f"{_name(fold)}, {number + 1} of {len(data.folds)}"
    logger.info(f"{progress}: {clips:,} clips to train on, {len(fold):,} to evaluate on")
    sets = replace(config.data, train=str(train), validation="", evaluation=fold.source)
    run = replace(config, run_dir=str(directory / _name(fold)), data=sets)
    return loop.train(run, cache_programs=cache_programs)


def _by_model(runs: Sequence[Sequence[ModelSummary]]) -> list[ModelResult]:
    """Returns the results by row of the summary, which is the same for all runs."""
    return [ModelResult(rows[0].name, tuple(row.sets[EVALUATION] for row in rows)) for rows in zip(*runs, strict=True)]


def _write(directory: Path, names: Sequence[str], results: Sequence[ModelResult]) -> None:
    """Writes a table with a row per model and fold, and below them mean and spread; and the same values as JSON."""
    metrics, rows = results[0].metrics(), []
    summary: dict[str, Any] = {"protocol": PROTOCOL, "spread": SPREAD, "folds": list(names), "models": {}}
    for result in results:
        estimates = {metric: result.estimate(metric) for metric in metrics}
        for name, measured in zip(names, result.folds):
            values = {column: getattr(measured, column) for column in (*metrics, *_COUNTS)}
            rows.append({"model": result.name, "fold": name, **values})
        counts = dict.fromkeys(_COUNTS, "")
        rows.append({"model": result.name, "fold": "mean", **{m: e.mean for m, e in estimates.items()}, **counts})
        rows.append({"model": result.name, "fold": "std", **{m: e.std for m, e in estimates.items()}, **counts})
        summary["models"][result.name] = {
            m: {"mean": e.mean, "std": e.std, "folds": [getattr(f, m) for f in result.folds]}
            for m, e in estimates.items()
        }
    tables.write_csv(directory / TABLE, ["model", "fold", *metrics, *_COUNTS], rows)
    tables.write_text(directory / SUMMARY, json.dumps(tables.json_value(summary), indent=1, allow_nan=False) + "\n")


def _print(console: Console, title: str, results: Sequence[ModelResult]) -> None:
    """Prints the table of the means, and how it was measured."""
    metrics = results[0].metrics()
    table = Table(title=escape(title), title_justify="left")
    table.add_column("model", overflow="fold")
    for metric in metrics:
        table.add_column(_METRICS[metric], justify="right", no_wrap=True)
    for result in results:
        estimates = [result.estimate(metric) for metric in metrics]
        table.add_row(result.name, *map(str, estimates))
    console.print(table)
    folds = results[0].folds
    scored = min(metrics.num_scored for metrics in folds)
    console.print(f"{len(folds)} folds, {sum(metrics.num_clips for metrics in folds):,} clips; mean +- {SPREAD}")
    if scored < folds[0].num_classes:
        console.print(
            f"a fold has positive clips of only {scored} of {folds[0].num_classes} classes, and mAP is over these"
        )
    console.print(PROTOCOL)
