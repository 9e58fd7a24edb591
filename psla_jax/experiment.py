"""The one place that joins data, training, aggregation and report: prepare -> train -> summary.

Everything that a run needs to go on is in its run directory, and every step of it can be done again: killed at any
moment and started again, it ends with the files it would have ended with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax import processes, results, run_directory
from psla_jax.aggregation import RunningEnsemble
from psla_jax.config import RunConfig
from psla_jax.data import sets
from psla_jax.data.pipeline import Batch, TrainSource, batches, train_source
from psla_jax.data.sets import VALIDATION, DataError, DataSets
from psla_jax.journal import Board, Journal
from psla_jax.models import tagger
from psla_jax.models.layers import NoDraws
from psla_jax.pretraining.start import start_from
from psla_jax.profiling import Profile
from psla_jax.results import ACCURACY, EPOCH_COLUMNS, Measured, Row, epoch_columns
from psla_jax.run_checkpoints import RunCheckpoints, SaveError
from psla_jax.run_directory import CHECKPOINTS, LOG, RunError
from psla_jax.shelf import Shelf
from psla_jax.stopping import Stop, Stopped
from psla_jax.summary import AGGREGATES, epoch_name, read_rows, summarise
from psla_jax.training import (
    LOSSES,
    WISH,
    Placement,
    State,
    learning_rate,
    make_trainer,
    no_progress,
    split_model,
)
from psla_jax.watch import BEHIND, Watch

RESULT = "result.csv"
SAVE = 64
"""The wish to save, where no signal has this number; a signal's own number is the wish to stop."""


def train(config: RunConfig) -> list[Measured]:
    """Trains, evaluates and aggregates; goes on where an earlier start on the same run directory ended.

    Returns:
        The rows of the summary: best single model, weight average(s), checkpoint ensemble.

    Raises:
        ValueError: one of this package's own, for settings or data that cannot be used, before any training step.
        TrainingError: the loss is not finite.
        SaveError: a checkpoint cannot be written.
        PeerError: another process of the run is gone.
        Stopped: the process was told to, and has saved.
    """
    with processes.joined(config.distributed):
        return _train(config)


def _train(config: RunConfig) -> list[Measured]:
    placement = Placement.over_all_devices()
    placement.check_batch(config.data.batch_size, config.optimizer.accumulate)
    directory = Path(config.run_dir)
    screen = Journal(silent=not processes.first())
    data = sets.load(config.data, config.optimizer.loss, screen.say)
    # What is kept of a run is the loss that it had, not how it was found.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss=data.loss))

    def edited_sets() -> list[str]:
        return processes.of_first(lambda: run_directory.check(directory, config, data), RunError)

    edited_sets()
    processes.of_first(lambda: sets.check_clips(data, config.data, screen.say), DataError)
    with run_directory.alone(directory):
        edited = edited_sets()
        run_directory.settle(directory, config, data)
        with Stop() as stop:
            run = open_run(directory, config, data, placement, stop)
            for name in edited:
                run.journal.say(f"{name} was edited since this run was started, which data.edited accepts")
            run.fit()
            return run.summarise()


def open_run(directory: Path, config: RunConfig, data: DataSets, placement: Placement, stop: Stop) -> Run:
    """Builds model and trainer for a run directory that is settled."""

    def build(rngs: nnx.Rngs | NoDraws) -> nnx.Module:
        return tagger.from_config(config.model, len(data.vocabulary), jnp.dtype(config.optimizer.compute), rngs)

    steps = math.ceil(len(data.train) / config.data.batch_size)
    own = ":" in config.model.name  # Somebody's own code may not be built without weights.
    sketch = build(nnx.Rngs(config.seed) if own else NoDraws())
    trainer = make_trainer(config, sketch, steps, placement)
    # While the weights are drawn and the data is opened. Not where weights have to be found first: a process cannot end
    # before what it compiles is compiled, and that they are not there is to be known at once.
    if not own and not config.pretraining.source and len(_rows(directory)) < config.optimizer.epochs:
        trainer.prepare(sketch, len(data.vocabulary))
    model = sketch if own else build(nnx.Rngs(config.seed))
    journal = Journal(directory / LOG, silent=not processes.first())
    shared = data.shared(directory / ".index")
    return Run(Shelf(directory, config, shared, trainer, model, journal, stop), steps)


@dataclass(frozen=True)
class Point:
    """Where a run is: its state, the rows of the epochs done, the steps done, the clips set aside in this epoch."""

    state: State
    rows: list[Row]
    step: int
    failed: set[int]


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory with everything needed to go on in it."""

    shelf: Shelf
    steps_per_epoch: int

    @property
    def config(self) -> RunConfig:
        return self.shelf.config

    @property
    def directory(self) -> Path:
        return self.shelf.directory

    @property
    def journal(self) -> Journal:
        return self.shelf.journal

    @property
    def epochs(self) -> int:
        return self.config.optimizer.epochs

    def summarise(self) -> list[Measured]:
        """Averages, ensembles and scores what training left."""
        return summarise(self.shelf, read_rows(self.directory / RESULT))

    def fit(self) -> None:
        """Trains the epochs that are missing."""
        checkpoints = RunCheckpoints(self.directory / CHECKPOINTS)
        try:
            if not self._trained(checkpoints):
                point = self._start(checkpoints)
                self._introduce(point.step)
                self._fit(checkpoints, point)
        except BaseException:
            try:
                checkpoints.close()
            except SaveError as error:  # What ended the run comes first.
                self.journal.say(str(error))
            raise
        checkpoints.close()
        processes.barrier("trained")

    def _trained(self, checkpoints: RunCheckpoints) -> bool:
        """Whether all epochs are done, and in the table."""
        steps = checkpoints.steps()
        last = bool(steps) and steps[0] == self.epochs * self.steps_per_epoch
        return not processes.any_of(not (last and len(_rows(self.directory)) == self.epochs))

    def _start(self, checkpoints: RunCheckpoints) -> Point:
        """Where to go on."""
        shelf = self.shelf
        found = checkpoints.newest(shelf.trainer.init(shelf.model), self.journal.say)
        if found is not None:
            step, state, notes = found
            return Point(state, notes["rows"], step, set(notes["failed"]))
        config = self.config
        if config.pretraining.source:
            said = start_from(shelf.model, config.model, config.pretraining, shelf.data.vocabulary, config.frontend)
            self.journal.say(said)
        return Point(shelf.trainer.init(shelf.model), [], 0, set())

    def _introduce(self, step: int) -> None:
        data = self.shelf.data
        count = sum(x.size for x in jax.tree.leaves(split_model(self.shelf.model)[0]))
        devices = self.shelf.trainer.placement.mesh.devices.ravel()
        together = f" in {processes.count()} processes" if processes.count() > 1 else ""
        self.journal.say(
            f"{self.config.model.name}: {count:,} parameters, {len(data.vocabulary)} classes; {len(data.train):,} "
            f"training clips; {len(devices)} x {devices[0].device_kind}{together}; run {self.directory}"
        )
        if self.config.optimizer.loss == "ce":
            chosen = ", and the best epoch is the most accurate" if data.primary == VALIDATION else ""
            self.journal.say(f"every clip has exactly one label: the loss is cross-entropy{chosen}")
        if step:
            self.journal.say(f"continuing at epoch {step // self.steps_per_epoch + 1}, step {step}")
            return
        counts = data.train.class_counts()
        listed = "\n".join(f"{name}: {n}" for name, n in zip(data.vocabulary.names, counts))
        self.journal.note(f"clips per class in the training set\n{listed}")

    def _fit(self, checkpoints: RunCheckpoints, point: Point) -> None:
        config, place = self.config, self.shelf.trainer.placement
        rows, begun = place.rows(config.data.batch_size), point.step
        stream = batches(self._train_source, workers=config.data.workers, start=begun, rows=rows)
        profile = Profile(self.directory / "profile", config.profile, begun)
        running = RunningEnsemble()
        for epoch in range(1, len(point.rows) + 1):
            running.add(self.shelf.scores(self.shelf.data.primary, epoch_name(epoch)))
        curves = self.directory if processes.first() else None
        with (
            contextlib.closing(stream),
            Board(curves, len(point.rows), self.journal.say) as board,
            Board(curves and curves / "steps", begun + 1, self.journal.say) as step_board,
        ):
            while len(point.rows) < self.epochs:
                watch = self._watch(point, step_board)
                point = self._train_epoch(checkpoints, point, stream, watch, profile)
                row = self._end_epoch(checkpoints, point, running, board, made=point.step == begun)
                self._publish([*point.rows, row], board)
                state = {**point.state, "progress": place.replicate(no_progress())}
                point = Point(state, [*point.rows, row], point.step, set())

    def _watch(self, point: Point, board: Board) -> Watch:
        return Watch(
            self.shelf.data.train,
            point.failed,
            skip=self.config.optimizer.nonfinite == "skip",
            say=self.journal.say,
            curves=lambda scalars, step: board.add({f"train/{k}": v for k, v in scalars.items()}, step),
            steps=self.steps_per_epoch,
        )

    @functools.cached_property
    def _train_source(self) -> TrainSource:
        config, length = self.config, self.shelf.trainer.frontend.num_samples
        return train_source(
            self.shelf.data.train,
            config.data,
            config.sampling,
            num_samples=length,
            epochs=self.epochs,
            seed=config.seed,
        )

    def _train_epoch(
        self, checkpoints: RunCheckpoints, point: Point, stream: Iterator[Batch], watch: Watch, profile: Profile
    ) -> Point:
        """The steps that are missing in an epoch; its end is saved before anything is scored."""
        end, state, place = (len(point.rows) + 1) * self.steps_per_epoch, point.state, self.shelf.trainer.placement
        if point.step == end:
            return point
        saved, clock = point.step, time.monotonic()
        name, done = f"epoch {len(point.rows) + 1}/{self.epochs}", point.step - end + self.steps_per_epoch
        with self.journal.progress(name, self.steps_per_epoch, done=done) as bar:
            bar.describe("compiling" if not point.rows else "")
            for step in range(point.step, end):
                profile.before(step, watch.settle, self.journal.say)
                batch, wish = watch.fetch(stream), self._wish(clock)
                state, metrics = self.shelf.trainer.step(state, place.put(_with_wish(batch, wish)), np.int32(step))
                watch.add(step, batch, metrics)
                bar.advance(watch.note())
                told = self._wish(clock) if processes.count() == 1 else watch.told
                if step + 1 < end and self._wants_to_save(told, step + 1, saved):
                    self._save(checkpoints, Point(state, point.rows, step + 1, point.failed), watch)
                    saved, clock = step + 1, time.monotonic()
                    if told not in (0, SAVE):
                        checkpoints.wait()
                        raise Stopped(told, f"step {step + 1} is saved")
        profile.finish(watch.settle, self.journal.say)
        self.shelf.forget_scores(epoch_name(len(point.rows) + 1), *AGGREGATES)
        point = self._save(checkpoints, Point(state, point.rows, end, point.failed), watch)
        self._report(watch, point)
        return point

    def _wish(self, saved: float) -> int:
        """What this process wants: to stop, to save, or 0."""
        if self.shelf.stop:
            return self.shelf.stop.signal
        minutes = self.config.checkpoint_minutes
        return SAVE if minutes and processes.first() and time.monotonic() - saved > 60 * minutes else 0

    def _wants_to_save(self, told: int, step: int, saved: int) -> bool:
        """Whether the state is to be saved after that step; `told` may be a wish that has been fulfilled since."""
        every = self.config.checkpoint_every
        return (
            told not in (0, SAVE) or bool(every and step % every == 0) or (told == SAVE and step - saved > 2 * BEHIND)
        )

    def _save(self, checkpoints: RunCheckpoints, point: Point, watch: Watch) -> Point:
        """Saves a state that is known to be finite, with the clips that any process set aside."""
        watch.settle()
        point = dataclasses.replace(point, failed=self._failed(watch))
        checkpoints.save(point.step, point.state, {"rows": point.rows, "failed": sorted(point.failed)})
        return point

    def _failed(self, watch: Watch) -> set[int]:
        if processes.count() == 1:
            return set(watch.failed)
        mask = np.zeros((1, len(self.shelf.data.train)), np.uint8)
        mask[0, list(watch.failed)] = 1
        return set(np.flatnonzero(processes.gather(mask).any(axis=0)).tolist())

    def _report(self, watch: Watch, point: Point) -> None:
        """Says what was odd in the epoch."""
        watch.failed |= point.failed
        if processes.first():
            watch.report(self.config.data.channel, self.journal.say)
        pace, slow = watch.pace()
        (self.journal.say if slow else self.journal.note)(pace)
        skipped = int(point.state["progress"]["skipped"])
        if skipped:
            self.journal.say(f"{skipped} steps of this epoch were skipped: their loss or gradient was not finite")

    def _end_epoch(
        self, checkpoints: RunCheckpoints, point: Point, running: RunningEnsemble, board: Board, *, made: bool
    ) -> Row:
        """Scores the primary set, saves scores and model, and makes the epoch's row of ``result.csv``.

        `made` says that an earlier start ended after the epoch's last step: what it made of it since is right.
        """
        shelf, epoch = self.shelf, len(point.rows) + 1
        kind, name, weights = shelf.data.primary, epoch_name(epoch), (point.state["params"], point.state["rest"])
        if made and not processes.any_of(not shelf.scores_path(kind, name).is_file()):
            scores = shelf.scores(kind, name)
        else:
            scores = shelf.score(kind, weights, f"epoch {epoch}: scoring")
            checkpoints.wait()  # Scores of an epoch that is not saved would be of another one, if it is run again.
            shelf.keep(kind, name, scores)
        running.add(scores)
        metrics, together = scores.metrics(), running.mean().metrics()
        board.spread(f"{kind}/AP_per_class", metrics.per_class_ap, epoch)
        board.spread(f"{kind}/AUC_per_class", metrics.per_class_auc, epoch)
        progress = jax.device_get(point.state["progress"])
        board.add(
            {"train/skipped_steps": float(progress["skipped"]), "train/clips_set_aside": len(point.failed)}, epoch
        )
        rate = learning_rate(self.config.optimizer, self.steps_per_epoch)(epoch * self.steps_per_epoch - 1)
        loss = LOSSES[self.config.optimizer.loss](jnp.asarray(scores.scores), jnp.asarray(scores.labels))
        if not made or processes.any_of(not shelf.has_model(name)):
            shelf.save_model(name, weights, {"epochs": [epoch], "set": kind, "mAP": metrics.mAP})
        values = (
            epoch, metrics.mAP, metrics.mAUC, metrics.precision, metrics.recall, metrics.d_prime,
            progress["loss"] / max(progress["count"], 1.0), loss.mean(), together.mAP, together.mAUC, rate,
        )  # fmt: skip
        row: dict[str, Any] = {name: float(value) for name, value in zip(EPOCH_COLUMNS, values)} | {"epoch": epoch}
        return row if math.isnan(metrics.accuracy) else row | {ACCURACY: metrics.accuracy}

    def _publish(self, rows: list[Row], board: Board) -> None:
        row, columns, kind = rows[-1], epoch_columns(rows), self.shelf.data.primary
        if processes.first():
            results.write_csv(self.directory / RESULT, columns, rows)
        board.add({f"{kind}/{name}": row[name] for name in columns[1:]}, int(row["epoch"]))
        accuracy = f"accuracy {row[ACCURACY]:.4f}  " if ACCURACY in row else ""
        self.journal.say(
            f"epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  {kind}: "
            f"loss {row['valid_loss']:.4f}  {accuracy}mAP {row['mAP']:.4f}  AUC {row['mAUC']:.4f}  "
            f"ensemble mAP {row['ensemble_mAP']:.4f}"
        )


def _rows(directory: Path) -> list[Row]:
    """Of the epochs that a run directory has finished."""
    table = directory / RESULT
    return read_rows(table) if table.is_file() else []


def _with_wish(batch: Batch, wish: int) -> Batch:
    """The batch, with this process's wish where there are others to tell."""
    if processes.count() == 1:
        return batch
    return {**batch, WISH: np.full(len(batch["valid"]), wish, np.int32)}
