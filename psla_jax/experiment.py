"""The one place that joins data, training, aggregation and report: prepare -> train -> summary.

Everything that a run needs to go on is in its run directory, and every step of it can be done again: killed at any
moment and started again, it ends with the files it would have ended with.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax import results
from psla_jax.aggregation import RunningEnsemble, average, ensemble, reestimate
from psla_jax.checkpoints import (
    AVERAGE,
    BEST,
    PLAIN_AVERAGE,
    ModelCard,
    RunCheckpoints,
    exact_graphdef,
    load_weights,
    save_model,
)
from psla_jax.config import RunConfig, differences, flatten, from_json, to_json
from psla_jax.data import sets
from psla_jax.data.pipeline import Batch, TrainSource, batches, evaluation_source, plain_source, train_source
from psla_jax.data.sets import EVALUATION, VALIDATION, DataSets
from psla_jax.evaluation import score
from psla_jax.journal import Board, Journal
from psla_jax.metrics import Metrics, bootstrap, d_prime
from psla_jax.models import tagger
from psla_jax.pretraining.start import start_from
from psla_jax.profiling import Profile
from psla_jax.results import ACCURACY, EPOCH_COLUMNS, Measured, Row, epoch_columns
from psla_jax.scores import Scores
from psla_jax.training import (
    LOSSES,
    Placement,
    State,
    Trainer,
    learning_rate,
    make_trainer,
    no_progress,
    split_model,
)
from psla_jax.verification import golden, golden_scores
from psla_jax.watch import Watch

CONFIG, DATA, SUMMARY, LOG, LABELS = "config.json", "data.json", "summary.json", "log.txt", "labels.csv"
CHECKPOINTS = "checkpoints"
BEFORE_CONFIG = (LABELS, DATA)
"""What a run killed in its first moments may have left behind."""
SINGLE_WITHOUT_VALIDATION = 5
"""Epochs whose mean is the "single model" where no validation set can choose one (the reference, for AudioSet)."""
ENSEMBLE = "ensemble"
Weights = tuple[Any, Any]


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message names it and the remedy."""


def train(config: RunConfig) -> list[Measured]:
    """Trains, evaluates and aggregates; goes on where an earlier start on the same run directory ended.

    Returns:
        The rows of the summary: best single model, weight average(s), checkpoint ensemble.

    Raises:
        ValueError: one of this package's own, for settings or data that cannot be used, before any training step.
        TrainingError: the loss is not finite.
    """
    placement = Placement.over_all_devices()
    placement.check_batch(config.data.batch_size, config.optimizer.accumulate)
    directory = Path(config.run_dir)
    screen = Journal()
    data = sets.load(config.data, config.optimizer.loss, screen.say)
    # What is kept of a run is the loss that it had, not how it was found.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss=data.loss))
    check_directory(directory, config, data)
    sets.check_clips(data, config.data, screen.say)
    run = open_run(directory, config, data, placement)
    run.fit()
    return run.summarise()


def check_directory(directory: Path, config: RunConfig, data: DataSets) -> None:
    """Raises RunError if `directory` holds another run, or something that is no run."""
    if not directory.exists():
        return
    if not (directory / CONFIG).is_file():
        if all(entry.name in BEFORE_CONFIG or entry.name.startswith(".") for entry in directory.iterdir()):
            return
        raise RunError(f"{directory} holds files but no run ({CONFIG} is missing): choose another with --run-dir.")
    if not any((directory / CHECKPOINTS).glob("[0-9]*")):
        return  # Nothing was learned there yet, so a config that turned out wrong may be mended.
    changed = differences(from_json((directory / CONFIG).read_text(encoding="utf-8")), config)
    if changed:
        raise RunError(
            f"{directory} holds a run of another config ({'; '.join(changed)}): choose another directory with "
            "--run-dir, or start it with its own settings."
        )
    found = data.identity()
    known = json.loads((directory / DATA).read_text(encoding="utf-8")) if (directory / DATA).is_file() else {}
    edited = [name for name in found if known.get(name) != found[name]]
    if edited:
        raise RunError(
            f"{directory} was started on other data (changed: {', '.join(edited)}): choose another directory with "
            "--run-dir, or restore the data."
        )


def open_run(directory: Path, config: RunConfig, data: DataSets, placement: Placement) -> Run:
    """Makes the run directory, or finds it; builds model and trainer."""
    directory.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    # The config is written last: a directory with a config has everything that comes before it.
    data.vocabulary.write(directory / LABELS)
    results.write_text(directory / DATA, json.dumps(data.identity(), indent=1) + "\n")
    results.write_text(directory / CONFIG, to_json(config))
    dtype = jnp.dtype(config.optimizer.compute)
    model = tagger.from_config(config.model, len(data.vocabulary), dtype, nnx.Rngs(config.seed))
    steps = math.ceil(len(data.train) / config.data.batch_size)
    trainer = make_trainer(config, model, steps, placement)
    return Run(directory, config, data.shared(directory / ".index"), trainer, model, steps, Journal(directory / LOG))


def _sweep(directory: Path) -> None:
    """Removes what a killed start wrote aside and never renamed: ``.NAME.PID``."""
    for place in (directory, directory / "models", directory / "scores"):
        for left in place.glob(".*.[0-9]*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory with everything needed to go on in it."""

    directory: Path
    config: RunConfig
    data: DataSets
    trainer: Trainer
    model: nnx.Module
    steps_per_epoch: int
    journal: Journal

    @property
    def epochs(self) -> int:
        return self.config.optimizer.epochs

    # ---- training

    def fit(self) -> None:
        """Trains the epochs that are missing."""
        checkpoints = RunCheckpoints(self.directory / CHECKPOINTS)
        try:
            state, rows, step, failed = self._start(checkpoints)
            if len(rows) < self.epochs:
                self._introduce(step)
                self._fit(checkpoints, state, rows, step, failed)
        finally:
            checkpoints.close()

    def _start(self, checkpoints: RunCheckpoints) -> tuple[State, list[Row], int, set[int]]:
        """The state to go on from, the rows of the epochs done, the steps done, the clips set aside in this epoch."""
        step = checkpoints.latest()
        if step is None:
            if self.config.pretraining.source:
                self.journal.say(
                    start_from(
                        self.model,
                        self.config.model,
                        self.config.pretraining,
                        self.data.vocabulary,
                        self.config.frontend,
                    )
                )
            return self.trainer.init(self.model), [], 0, set()
        state, notes = checkpoints.restore(step, self.trainer.init(self.model))
        return state, notes["rows"], step, set(notes["failed"])

    def _introduce(self, step: int) -> None:
        count = sum(x.size for x in jax.tree.leaves(split_model(self.model)[0]))
        devices = self.trainer.placement.mesh.devices.ravel()
        self.journal.say(
            f"{self.config.model.name}: {count:,} parameters, {len(self.data.vocabulary)} classes; "
            f"{len(self.data.train):,} training clips; {len(devices)} x {devices[0].device_kind}; run {self.directory}"
        )
        if self.config.optimizer.loss == "ce":
            chosen = ", and the best epoch is the most accurate" if self.data.primary == VALIDATION else ""
            self.journal.say(f"every clip has exactly one label: the loss is cross-entropy{chosen}")
        if step:
            self.journal.say(f"continuing at epoch {step // self.steps_per_epoch + 1}, step {step}")
            return
        counts = self.data.train.class_counts()
        listed = "\n".join(f"{name}: {n}" for name, n in zip(self.data.vocabulary.names, counts))
        self.journal.note(f"clips per class in the training set\n{listed}")

    def _fit(self, checkpoints: RunCheckpoints, state: State, rows: list[Row], step: int, failed: set[int]) -> None:
        stream = batches(self._train_source, workers=self.config.data.workers, start=step)
        profile = Profile(self.directory / "profile", self.config.profile, step)
        running = RunningEnsemble()
        for epoch in range(1, len(rows) + 1):
            running.add(self._saved_scores(self.data.primary, epoch_name(epoch)))
        with Board(self.directory, after=len(rows)) as board:
            while len(rows) < self.epochs:
                watch = Watch(self.data.train, failed)
                state = self._train_epoch(checkpoints, state, stream, rows, step, watch, profile)
                step, failed = (len(rows) + 1) * self.steps_per_epoch, set()
                watch.report(self.config.data.channel, self.journal.say)
                pace, slow = watch.pace()
                (self.journal.say if slow else self.journal.note)(pace)
                rows = [*rows, self._end_epoch(state, len(rows) + 1, running)]
                self._publish(rows, board)
                state = {**state, "progress": jax.device_put(no_progress(), self.trainer.placement.replicated)}
                checkpoints.save(step, state, {"rows": rows, "failed": []})

    @functools.cached_property
    def _train_source(self) -> TrainSource:
        config, length = self.config, self.trainer.frontend.num_samples
        return train_source(
            self.data.train, config.data, config.sampling, num_samples=length, epochs=self.epochs, seed=config.seed
        )

    def _train_epoch(
        self,
        checkpoints: RunCheckpoints,
        state: State,
        stream: Iterator[Batch],
        rows: list[Row],
        step: int,
        watch: Watch,
        profile: Profile,
    ) -> State:
        every, end = self.config.checkpoint_every, (len(rows) + 1) * self.steps_per_epoch
        first = step
        name = f"epoch {len(rows) + 1}/{self.epochs}"
        with self.journal.progress(name, self.steps_per_epoch, done=step - len(rows) * self.steps_per_epoch) as bar:
            bar.describe("compiling" if step == first and not rows else "")
            for step in range(first, end):
                profile.before(step, watch.settle, self.journal.say)
                batch = watch.fetch(stream)
                state, metrics = self.trainer.step(state, self.trainer.placement.put(batch), np.int32(step))
                watch.add(step, batch, metrics)
                bar.advance(watch.note())
                if every and (step + 1) % every == 0 and step + 1 < end:
                    watch.settle()
                    checkpoints.save(step + 1, state, {"rows": rows, "failed": sorted(watch.failed)})
        profile.finish(watch.settle, self.journal.say)
        watch.settle()
        return state

    def _end_epoch(self, state: State, epoch: int, running: RunningEnsemble) -> Row:
        """Scores the primary set, saves scores and model, and makes the epoch's row of ``result.csv``."""
        weights = (state["params"], state["rest"])
        scores = self._score(self.data.primary, weights, f"epoch {epoch}: scoring")
        scores.save(self._scores_path(self.data.primary, epoch_name(epoch)))
        running.add(scores)
        metrics, together = scores.metrics(), running.mean().metrics()
        progress = jax.device_get(state["progress"])
        rate = learning_rate(self.config.optimizer, self.steps_per_epoch)(epoch * self.steps_per_epoch - 1)
        loss = LOSSES[self.config.optimizer.loss](jnp.asarray(scores.scores), jnp.asarray(scores.labels))
        self._save_model(epoch_name(epoch), weights, {"epochs": [epoch], "set": self.data.primary, "mAP": metrics.mAP})
        values = (
            epoch, metrics.mAP, metrics.mAUC, metrics.precision, metrics.recall, metrics.d_prime,
            progress["loss"] / max(progress["count"], 1.0), loss.mean(), together.mAP, together.mAUC, rate,
        )  # fmt: skip
        row = {name: float(value) for name, value in zip(EPOCH_COLUMNS, values)} | {"epoch": epoch}
        return row if math.isnan(metrics.accuracy) else row | {ACCURACY: metrics.accuracy}

    def _publish(self, rows: list[Row], board: Board) -> None:
        row, columns = rows[-1], epoch_columns(rows)
        results.write_csv(self.directory / "result.csv", columns, rows)
        board.add({f"{self.data.primary}/{name}": row[name] for name in columns[1:]}, int(row["epoch"]))
        accuracy = f"accuracy {row[ACCURACY]:.4f}  " if ACCURACY in row else ""
        self.journal.say(
            f"epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  {self.data.primary}: "
            f"loss {row['valid_loss']:.4f}  {accuracy}mAP {row['mAP']:.4f}  AUC {row['mAUC']:.4f}  "
            f"ensemble mAP {row['ensemble_mAP']:.4f}"
        )

    # ---- models and scores, each by a name under models/ and scores/

    def _save_model(self, name: str, weights: Weights, notes: dict[str, Any], *, finished: bool = False) -> None:
        """Writes a model directory; a finished model carries its scores of the test sound."""
        origin = {"seed": self.config.seed, "data": self.data.identity(), "config": flatten(self.config)}
        checked = {}
        if finished:
            graphdef = exact_graphdef(self.config.model, len(self.data.vocabulary))
            scores = golden_scores(nnx.merge(graphdef, *weights), self.config.frontend)
            checked = golden(scores, self.data.vocabulary)
        card = ModelCard(
            self.config.model, self.config.frontend, self.data.vocabulary, {**notes, **origin}, golden=checked
        )
        save_model(self.directory / "models" / name, card, *weights)

    def _weights(self, name: str) -> Weights:
        like = split_model(self.model)
        return load_weights(self.directory / "models" / name, *like, sharding=self.trainer.placement.replicated)

    def _scores_path(self, kind: str, name: str) -> Path:
        return self.directory / "scores" / f"{kind}_{name}.npz"

    def _saved_scores(self, kind: str, name: str) -> Scores:
        """The scores of a saved model on a set: from its file, or made now."""
        path = self._scores_path(kind, name)
        if not path.is_file():
            self._score(kind, self._weights(name), f"{name} on the {kind} set").save(path)
        return Scores.load(path)

    def _score(self, kind: str, weights: Weights, description: str) -> Scores:
        data = self.data.held_out[kind]
        source = evaluation_source(data, self.config.data, num_samples=self.trainer.frontend.num_samples)
        stream = batches(source, threads=max(2, self.config.data.workers))
        placed = jax.device_put(weights, self.trainer.placement.replicated)
        with self.journal.progress(description, source.num_batches) as bar:
            model = (self.trainer.graphdef, *placed)
            scores = score(model, self.trainer.frontend, bar.over(stream), self.trainer.placement.put, data.clip_id)
        if scores.skipped:
            self.journal.say(f"{kind} set: {len(scores.skipped)} clips cannot be read: {', '.join(scores.skipped[:5])}")
        return dataclasses.replace(scores, mids=self.data.vocabulary.mids)

    # ---- aggregation

    def summarise(self) -> list[Measured]:
        """Averages, ensembles and scores what training left; writes the CSVs and shows the table."""
        rows = _read_rows(self.directory / "result.csv")
        measured = [self._single(rows)]
        averages = self._averages()
        measured += [
            self._measure(label, {k: self._saved_scores(k, name) for k in self.data.held_out})
            for name, label in averages
        ]
        measured.append(self._measure(f"checkpoint ensemble ({len(rows)} epochs)", self._ensembles(len(rows))))
        self._write_summary(measured)
        results.show_summary(self.journal.console, measured, f"summary of {self.directory}")
        return measured

    def _single(self, rows: list[Row]) -> Measured:
        """The best epoch on the validation set; without one, the mean of the last epochs."""
        if self.data.primary == EVALUATION:
            last = range(max(len(rows) - SINGLE_WITHOUT_VALIDATION, 0) + 1, len(rows) + 1)
            members = [self._saved_scores(EVALUATION, epoch_name(e)).metrics() for e in last]
            self._keep_best(len(rows))
            return Measured(f"single (mean of epochs {last[0]}-{last[-1]})", {EVALUATION: _mean_metrics(members)}, {})
        by_accuracy = self.config.optimizer.loss == "ce"  # Few clips make many ties, which the mAP then decides.
        merits = [(row.get(ACCURACY, 0.0) if by_accuracy else 0.0, row["mAP"]) for row in rows]
        best = 1 + merits.index(max(merits))
        self._keep_best(best)
        name = epoch_name(best)
        return self._measure(
            f"best single (epoch {best})", {k: self._saved_scores(k, name) for k in self.data.held_out}
        )

    def _keep_best(self, epoch: int) -> None:
        self._save_model(BEST, self._weights(epoch_name(epoch)), {"epochs": [epoch]}, finished=True)

    def _averages(self) -> list[tuple[str, str]]:
        """Makes the weight averages; their model names and their labels in the summary."""
        first, last = self.config.aggregation.first, self.config.aggregation.last
        label = f"weight average (epochs {first}-{last})"
        plain = average(self._weights(epoch_name(e)) for e in range(first, last + 1))
        notes = {"epochs": list(range(first, last + 1))}
        # A frozen backbone has the statistics that it came with, in every epoch.
        if not self.config.aggregation.reestimate or self.config.pretraining.freeze:
            self._save_model(AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
            return [(AVERAGE, label)]
        self._save_model(PLAIN_AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
        self._save_model(AVERAGE, self._reestimated(plain), {**notes, "statistics": "re-estimated"}, finished=True)
        return [(AVERAGE, f"{label}, statistics re-estimated"), (PLAIN_AVERAGE, f"{label}, plain")]

    def _reestimated(self, weights: Weights) -> Weights:
        """The same parameters with batch statistics of their own, by one pass over the training set."""
        frontend, put = self.trainer.frontend, self.trainer.placement.put
        source = plain_source(
            self.data.train, self.config.data, num_samples=frontend.num_samples, seed=self.config.seed
        )
        params, rest = jax.device_put(weights, self.trainer.placement.replicated)
        stream = batches(source, threads=max(2, self.config.data.workers))
        with self.journal.progress("re-estimating batch statistics", source.num_batches) as bar:
            return params, reestimate((self.trainer.graphdef, params, rest), frontend, bar.over(stream), put)

    def _ensembles(self, epochs: int) -> dict[str, Scores]:
        combined = {}
        for kind in self.data.held_out:
            combined[kind] = ensemble(self._saved_scores(kind, epoch_name(e)) for e in range(1, epochs + 1))
            combined[kind].save(self._scores_path(kind, ENSEMBLE))
        return combined

    def _measure(self, name: str, scores: dict[str, Scores]) -> Measured:
        resamples = self.config.bootstrap
        intervals = {k: bootstrap(s.scores, s.labels, resamples=resamples) for k, s in scores.items() if resamples}
        return Measured(name, {k: s.metrics() for k, s in scores.items()}, intervals)

    def _write_summary(self, measured: list[Measured]) -> None:
        names = ["best_single_result", "wa_result", *["wa_plain_result"] * (len(measured) - 3), "ensemble_result"]
        for name, row in zip(names, measured):
            results.write_csv(self.directory / f"{name}.csv", list(row.columns()), [row.columns()])
        text = json.dumps({row.name: row.to_json() for row in measured}, indent=1)
        results.write_text(self.directory / SUMMARY, text + "\n")
        self.journal.note(text)


def epoch_name(epoch: int) -> str:
    """Name of an epoch's model and scores; epochs are counted from 1."""
    return f"epoch_{epoch:03d}"


def _read_rows(path: Path) -> list[Row]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split(","), map(float, line.split(",")))) for line in lines]


def _mean_metrics(members: list[Metrics]) -> Metrics:
    """Figure by figure over epochs; d' follows from the mean AUC."""
    names = ("mAP", "mAUC", "precision", "recall", "accuracy", "per_class_ap", "per_class_auc")
    mean = {name: np.mean([getattr(m, name) for m in members], axis=0) for name in names}
    return dataclasses.replace(members[-1], **mean, d_prime=d_prime(float(mean["mAUC"])))
