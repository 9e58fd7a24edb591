"""Training of a run: prepare, train, evaluate every epoch, and summarise.

Everything that a run needs to resume is in its run directory, and every operation on it can be repeated: a run that is
killed at any moment and started again ends with the files that an uninterrupted one has.
"""

from __future__ import annotations

import contextlib
import dataclasses
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

from psla_jax.aggregation.average import RunningEnsemble
from psla_jax.audio.windows import Grid
from psla_jax.config import RunConfig
from psla_jax.data import datasets
from psla_jax.data.datasets import VALIDATION, DataError, DataSets
from psla_jax.data.loader import Batch, batches, train_source
from psla_jax.evaluation import tables
from psla_jax.evaluation.tables import ACCURACY, EPOCH_COLUMNS, EpochRow, ModelSummary, epoch_columns
from psla_jax.models import factory
from psla_jax.models.custom import ignores_padding, require_trainable
from psla_jax.models.state import split_model
from psla_jax.pretraining.initialize import start_from
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger, TensorBoardWriter
from psla_jax.runtime.preemption import StopHandler, Stopped
from psla_jax.runtime.sharding import CONTROL, Placement
from psla_jax.training import run_directory, short_runs, statistics
from psla_jax.training.artifacts import RunArtifacts
from psla_jax.training.checkpointing import RunCheckpoints, SaveError
from psla_jax.training.losses import LOSSES
from psla_jax.training.monitor import MAX_STEPS_AHEAD, TrainingMonitor
from psla_jax.training.optimizer import learning_rate
from psla_jax.training.profiling import Profile
from psla_jax.training.run_directory import CHECKPOINTS, LOG, RunError
from psla_jax.training.selection import best_epoch, is_complete
from psla_jax.training.step import State, make_trainer, zero_progress
from psla_jax.training.summary import AGGREGATES, epoch_name, read_rows, summarise

RESULT = "result.csv"
SAVE = 64
"""Control code that requests a checkpoint. A signal's number, which is never 64, requests to stop."""


def train(config: RunConfig, *, cache_programs: bool = False) -> list[ModelSummary]:
    """Trains, evaluates and aggregates a model; resumes if its run directory holds an unfinished run.

    Args:
        config: the config of the run.
        cache_programs: cache the traced step, so that the next process starts sooner, see
            :func:`psla_jax.training.step.make_trainer`.

    Returns:
        The rows of the summary: best single model, weight average(s), checkpoint ensemble.

    Raises:
        ValueError: a subclass of this package, for unusable settings or data, before the first training step.
        TrainingError: the loss is not finite.
        SaveError: a checkpoint cannot be written.
        PeerError: another process of the run is gone or has failed.
        Stopped: the process received a signal, and has saved its work.
    """
    with distributed.session(config.distributed):
        return _train(config, cache_programs)


def _train(config: RunConfig, cache_programs: bool) -> list[ModelSummary]:
    placement = Placement.over_all_devices()
    directory = Path(config.run_dir)
    logger = Logger(silent=not distributed.is_primary())
    with distributed.agree():
        data = datasets.load(config.data, config.optimizer.loss, logger.info)
    # The run directory records the loss itself, not "auto".
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss=data.loss))
    config = statistics.recorded(config, directory)

    def require_compatible() -> list[str]:
        return distributed.on_primary(lambda: run_directory.require_compatible(directory, config, data), RunError)

    require_compatible()
    distributed.on_primary(lambda: datasets.check_clips(data, config.data, logger.info, config.frontend), DataError)
    with run_directory.exclusive(directory):
        edited_sets = require_compatible()
        config, measured = statistics.measured(config, data, logger)
        notes = [*run_directory.extension_notes(directory, config), *measured, *statistics.notes(config)]
        run_directory.write_metadata(directory, config, data)
        with StopHandler() as stop:
            run = open_run(directory, config, data, placement, stop, cache_programs)
            notes += [
                f"{name} was edited since this run was started, which data.edited accepts" for name in edited_sets
            ]
            for note in notes:
                run.logger.info(note)
            run.fit()
            return run.summarise()


def open_run(
    directory: Path, config: RunConfig, data: DataSets, placement: Placement, stop: StopHandler, cache_programs: bool
) -> Run:
    """Builds model and trainer for a run directory with metadata."""
    if config.data.windows:
        samples, grid = config.frontend.num_samples, Grid.of(config.frontend)
        grid.require_covering(samples, grid.hop_frames(samples))
    dtype = jnp.dtype(config.optimizer.compute)
    model = factory.from_config(config.model, len(data.vocabulary), dtype, nnx.Rngs(config.seed))
    if ":" in config.model.name:
        frames, mels = config.frontend.target_length, config.frontend.num_mels
        require_trainable(model, config.model.name, len(data.vocabulary), frames, mels)
    steps = math.ceil(len(data.train) / config.data.batch_size)
    trainer = make_trainer(config, model, steps, placement, cache_programs=cache_programs)
    logger = Logger(directory / LOG, silent=not distributed.is_primary())
    return Run(RunArtifacts(directory, config, data.shared(directory / ".index"), trainer, model, logger, stop), steps)


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    state: State
    rows: list[EpochRow]
    """Rows of ``result.csv`` of the complete epochs."""
    step: int
    """Number of steps taken."""
    failed: set[int]
    """Indices of the clips that were unreadable in the present epoch."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory with everything that is needed to resume it."""

    artifacts: RunArtifacts
    steps_per_epoch: int

    @property
    def config(self) -> RunConfig:
        return self.artifacts.config

    @property
    def directory(self) -> Path:
        return self.artifacts.directory

    @property
    def logger(self) -> Logger:
        return self.artifacts.logger

    @property
    def epochs(self) -> int:
        return self.config.optimizer.epochs

    def summarise(self) -> list[ModelSummary]:
        """Averages, ensembles and scores the epochs."""
        return summarise(self.artifacts, read_rows(self.directory / RESULT))

    def fit(self) -> None:
        """Trains the missing epochs; with ``optimizer.patience``, up to the one at which training stops early."""
        checkpoints = RunCheckpoints(self.directory / CHECKPOINTS)
        try:
            if not self._is_trained(checkpoints):
                progress = self._resume(checkpoints)
                self._log_start(progress.step)
                self._fit(checkpoints, progress)
        except BaseException:
            try:
                checkpoints.close()
            except SaveError as error:  # The exception that ended the run takes precedence.
                self.logger.info(str(error))
            raise
        checkpoints.close()
        distributed.barrier("trained")
        rows = read_rows(self.directory / RESULT)
        if len(rows) < self.epochs:
            best = best_epoch(rows, self.config.optimizer)
            self.logger.info(
                f"training ended early, after epoch {len(rows)} of {self.epochs}: epoch {best} is still the best "
                f"(optimizer.patience is {self.config.optimizer.patience})"
            )

    def _is_trained(self, checkpoints: RunCheckpoints) -> bool:
        """Returns whether training has ended and all its epochs are in the table, for every process."""
        table = self.directory / RESULT
        rows = read_rows(table) if table.is_file() else []
        last = checkpoints.steps()[:1] == [len(rows) * self.steps_per_epoch]
        return not distributed.any_process(not (last and is_complete(rows, self.config.optimizer)))

    def _ends_after(self, rows: list[EpochRow]) -> bool:
        """Returns whether training ends after these epochs, as the primary process decides."""
        return distributed.on_primary(lambda: is_complete(rows, self.config.optimizer), RunError)

    def _resume(self, checkpoints: RunCheckpoints) -> Progress:
        """Returns the progress in the latest checkpoint, or that of a new run."""
        artifacts, config = self.artifacts, self.config
        latest = checkpoints.latest(artifacts.trainer.init(artifacts.model), self.logger.info)
        if latest is not None:
            step, state, notes = latest
            return Progress(state, notes["rows"], step, set(notes["failed"]))
        if config.pretraining.source:
            vocabulary = artifacts.data.vocabulary
            self.logger.info(start_from(artifacts.model, config.model, config.pretraining, vocabulary, config.frontend))
        return Progress(artifacts.trainer.init(artifacts.model), [], 0, set())

    def _log_start(self, step: int) -> None:
        data = self.artifacts.data
        count = sum(x.size for x in jax.tree.leaves(split_model(self.artifacts.model)[0]))
        devices = self.artifacts.trainer.placement.mesh.devices.ravel()
        processes = f" in {distributed.process_count()} processes" if distributed.process_count() > 1 else ""
        self.logger.info(
            f"{self.config.model.name}: {count:,} parameters, {len(data.vocabulary)} classes; {len(data.train):,} "
            f"training clips; {len(devices)} x {devices[0].device_kind}{processes}; run {self.directory}"
        )
        for note in short_runs.notes(self.config, self.artifacts.model, self.steps_per_epoch):
            self.logger.info(note)
        if padding := self._num_padding_rows():
            self.logger.info(
                f"{padding:,} rows of an epoch have no clip, and the batch statistics of {self.config.model.name} "
                "include them: let its call take valid (batch,), 0 for such rows, or use a data.batch_size that "
                "divides the clips and is divided by the devices"
            )
        if self.config.optimizer.loss == "ce":
            chosen = ", and the best epoch is the most accurate" if data.primary == VALIDATION else ""
            self.logger.info(f"every clip has exactly one label: the loss is cross-entropy{chosen}")
        if step:
            self.logger.info(f"resuming in epoch {step // self.steps_per_epoch + 1}, after step {step}")
            return
        counts = data.train.class_counts()
        listed = "\n".join(f"{name}: {n}" for name, n in zip(data.vocabulary.names, counts))
        self.logger.debug(f"clips per class in the training set\n{listed}")

    def _num_padding_rows(self) -> int:
        """Returns the number of rows without a clip in an epoch; 0 if the model ignores them."""
        if ":" not in self.config.model.name or ignores_padding(self.artifacts.model):
            return 0
        placement, accumulate = self.artifacts.trainer.placement, self.config.optimizer.accumulate
        rows = placement.padded_size(self.config.data.batch_size, accumulate) * self.steps_per_epoch
        return rows - len(self.artifacts.data.train)

    def _fit(self, checkpoints: RunCheckpoints, progress: Progress) -> None:
        config, trainer, data, first_step = self.config, self.artifacts.trainer, self.artifacts.data, progress.step
        settings = {"num_samples": trainer.frontend.num_samples, "epochs": self.epochs, "seed": config.seed}
        grid = Grid.of(trainer.frontend)
        source = train_source(data.train, config.data, config.sampling, **settings, grid=grid)
        own_rows = trainer.placement.rows(config.data.batch_size, config.optimizer.accumulate)
        stream = batches(source, workers=config.data.workers, start=first_step, rows=own_rows)
        profile = Profile(self.directory / "profile", config.profile, first_step)
        ensemble = RunningEnsemble()
        for epoch in range(1, len(progress.rows) + 1):
            ensemble.add(self.artifacts.scores(data.primary, epoch_name(epoch)))
        events = self.directory if distributed.is_primary() else None
        with (
            contextlib.closing(stream),
            TensorBoardWriter(events, len(progress.rows), self.logger.info) as epoch_curves,
            TensorBoardWriter(events and events / "steps", first_step + 1, self.logger.info) as step_curves,
        ):
            while not self._ends_after(progress.rows):
                monitor = self._monitor(progress, step_curves)
                progress = self._train_epoch(checkpoints, progress, stream, monitor, profile)
                resumed = progress.step == first_step
                rows = [*progress.rows, self._end_epoch(checkpoints, progress, ensemble, epoch_curves, resumed)]
                self._publish(rows, epoch_curves)
                state = {**progress.state, "progress": trainer.placement.replicate(zero_progress())}
                progress = Progress(state, rows, progress.step, set())

    def _monitor(self, progress: Progress, curves: TensorBoardWriter) -> TrainingMonitor:
        return TrainingMonitor(
            self.artifacts.data.train,
            progress.failed,
            skip=self.config.optimizer.nonfinite == "skip",
            log=self.logger.info,
            curves=lambda scalars, step: curves.scalars({f"train/{k}": v for k, v in scalars.items()}, step),
            steps=self.steps_per_epoch,
        )

    def _train_epoch(
        self,
        checkpoints: RunCheckpoints,
        progress: Progress,
        stream: Iterator[Batch],
        monitor: TrainingMonitor,
        profile: Profile,
    ) -> Progress:
        """Takes the missing steps of an epoch, and saves its end before anything is scored."""
        rows, state, trainer = progress.rows, progress.state, self.artifacts.trainer
        end = (len(rows) + 1) * self.steps_per_epoch
        if progress.step == end:
            return progress
        saved, clock = progress.step, time.monotonic()
        name, done = f"epoch {len(rows) + 1}/{self.epochs}", progress.step - end + self.steps_per_epoch
        with self.logger.progress(name, self.steps_per_epoch, done=done) as bar:
            bar.describe("compiling" if not rows else "")
            for step in range(progress.step, end):
                profile.before(step, monitor.settle, self.logger.info)
                batch = _with_control(monitor.fetch(stream), self._control(clock))
                state, metrics = trainer.step(state, trainer.placement.shard_batch(batch), np.int32(step))
                monitor.add(step, batch, metrics)
                bar.advance(monitor.status())
                control = self._control(clock) if distributed.process_count() == 1 else monitor.control
                if step + 1 < end and self._must_save(control, step + 1, saved):
                    self._save(checkpoints, Progress(state, rows, step + 1, progress.failed), monitor)
                    saved, clock = step + 1, time.monotonic()
                    if control not in (0, SAVE):
                        checkpoints.wait()
                        raise Stopped(control, f"step {step + 1} is saved")
        profile.finish(monitor.settle, self.logger.info)
        self.artifacts.delete_scores(epoch_name(len(rows) + 1), *AGGREGATES)
        progress = self._save(checkpoints, Progress(state, rows, end, progress.failed), monitor)
        self._log_epoch(monitor, progress)
        return progress

    def _control(self, last_save: float) -> int:
        """Returns this process's control code: a signal's number to stop, SAVE, or 0."""
        if self.artifacts.stop:
            return self.artifacts.stop.signal
        minutes = self.config.checkpoint_minutes
        return SAVE if minutes and distributed.is_primary() and time.monotonic() - last_save > 60 * minutes else 0

    def _must_save(self, control: int, step: int, last_save: int) -> bool:
        """Returns whether to save after that step. Control codes arrive late: the request may be fulfilled already."""
        every = self.config.checkpoint_every
        periodic = every > 0 and step % every == 0
        return periodic or control not in (0, SAVE) or (control == SAVE and step - last_save > 2 * MAX_STEPS_AHEAD)

    def _save(self, checkpoints: RunCheckpoints, progress: Progress, monitor: TrainingMonitor) -> Progress:
        """Saves a state that is known to be finite, with the clips that were unreadable for any process."""
        monitor.settle()
        failed = set(monitor.failed)
        if distributed.process_count() > 1:
            mask = np.zeros((1, len(self.artifacts.data.train)), np.uint8)
            mask[0, list(failed)] = 1
            failed = set(np.flatnonzero(distributed.gather(mask).any(axis=0)).tolist())
        progress = dataclasses.replace(progress, failed=failed)
        checkpoints.save(progress.step, progress.state, {"rows": progress.rows, "failed": sorted(progress.failed)})
        return progress

    def _log_epoch(self, monitor: TrainingMonitor, progress: Progress) -> None:
        """Logs unreadable clips, waiting times and skipped steps of the epoch."""
        monitor.failed |= progress.failed
        if distributed.is_primary():
            monitor.report_failed_clips(self.config.data.channel, self.logger.info)
        line, slow = monitor.loader_report()
        (self.logger.info if slow else self.logger.debug)(line)
        if skipped := int(progress.state["progress"]["skipped"]):
            self.logger.info(f"{skipped} steps of this epoch were skipped: their loss or gradient was not finite")

    def _end_epoch(
        self,
        checkpoints: RunCheckpoints,
        progress: Progress,
        ensemble: RunningEnsemble,
        curves: TensorBoardWriter,
        resumed: bool,
    ) -> EpochRow:
        """Scores the primary set, saves scores and model, and returns the epoch's row of ``result.csv``.

        With `resumed`, an earlier start took the epoch's last step, and the scores and model that it saved are reused.
        """
        artifacts, epoch, state = self.artifacts, len(progress.rows) + 1, progress.state
        kind, name, weights = artifacts.data.primary, epoch_name(epoch), (state["params"], state["batch_stats"])
        if resumed and not distributed.any_process(not artifacts.scores_path(kind, name).is_file()):
            scores = artifacts.scores(kind, name)
        else:
            scores = artifacts.score(kind, weights, f"epoch {epoch}: scoring")
            checkpoints.wait()  # Without a checkpoint the epoch is trained again, and its scores would be stale.
            artifacts.save_scores(kind, name, scores)
        ensemble.add(scores)
        metrics, ensemble_metrics = scores.metrics(), ensemble.mean().metrics()
        curves.histogram(f"{kind}/AP_per_class", metrics.per_class_ap, epoch)
        curves.histogram(f"{kind}/AUC_per_class", metrics.per_class_auc, epoch)
        sums = jax.device_get(state["progress"])
        counts = {"train/skipped_steps": float(sums["skipped"]), "train/clips_set_aside": len(progress.failed)}
        curves.scalars(counts, epoch)
        rate = learning_rate(self.config.optimizer, self.steps_per_epoch)(epoch * self.steps_per_epoch - 1)
        loss = LOSSES[self.config.optimizer.loss](jnp.asarray(scores.scores), jnp.asarray(scores.labels))
        if not resumed or distributed.any_process(not artifacts.has_model(name)):
            artifacts.save_model(name, weights, {"epochs": [epoch], "set": kind, "mAP": metrics.mAP})
        values = (
            epoch, metrics.mAP, metrics.mAUC, metrics.precision, metrics.recall, metrics.d_prime,
            sums["loss"] / max(sums["count"], 1.0), loss.mean(), ensemble_metrics.mAP, ensemble_metrics.mAUC, rate,
        )  # fmt: skip
        row: dict[str, Any] = {name: float(value) for name, value in zip(EPOCH_COLUMNS, values)} | {"epoch": epoch}
        return row if math.isnan(metrics.accuracy) else row | {ACCURACY: metrics.accuracy}

    def _publish(self, rows: list[EpochRow], curves: TensorBoardWriter) -> None:
        """Writes ``result.csv`` and the epoch's curves, and logs the epoch's metrics."""
        row, columns, kind = rows[-1], epoch_columns(rows), self.artifacts.data.primary
        if distributed.is_primary():
            tables.write_csv(self.directory / RESULT, columns, rows)
        curves.scalars({f"{kind}/{name}": row[name] for name in columns[1:]}, int(row["epoch"]))
        accuracy = f"accuracy {row[ACCURACY]:.4f}  " if ACCURACY in row else ""
        self.logger.info(
            f"epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  {kind}: "
            f"loss {row['valid_loss']:.4f}  {accuracy}mAP {row['mAP']:.4f}  AUC {row['mAUC']:.4f}  "
            f"ensemble mAP {row['ensemble_mAP']:.4f}"
        )


def _with_control(batch: Batch, control: int) -> Batch:
    """Adds this process's control code to the batch, if there are other processes."""
    if distributed.process_count() == 1:
        return batch
    return {**batch, CONTROL: np.full(len(batch["valid"]), control, np.int32)}
