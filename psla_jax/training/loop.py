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
from psla_jax.config import RunConfig, flatten, is_exclusive
from psla_jax.data import datasets
from psla_jax.data.datasets import VALIDATION, DataError, DataSets
from psla_jax.data.loader import Batch, batches
from psla_jax.evaluation import tables
from psla_jax.evaluation.scores import Scores
from psla_jax.evaluation.tables import ACCURACY, EPOCH_COLUMNS, EpochRow, ModelSummary, epoch_columns
from psla_jax.models import factory
from psla_jax.models.custom import ignores_padding, require_trainable
from psla_jax.models.model_dir import EMA
from psla_jax.models.precision import activations
from psla_jax.models.state import split_model
from psla_jax.pretraining.initialize import start_from
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.preemption import StopHandler, Stopped
from psla_jax.runtime.process import compilation_cache
from psla_jax.runtime.sharding import CONTROL, Placement
from psla_jax.runtime.trackers import Trackers
from psla_jax.training import losses, resolve, run_directory, setting_notes, teachers
from psla_jax.training.artifacts import RunArtifacts
from psla_jax.training.checkpointing import RunCheckpoints, SaveError
from psla_jax.training.monitor import MAX_STEPS_AHEAD, TrainingMonitor
from psla_jax.training.optimizer import make_schedule
from psla_jax.training.profiling import Profile
from psla_jax.training.run_directory import CHECKPOINTS, LOG, SUMMARY, RunError
from psla_jax.training.selection import best_epoch, is_complete, selecting_columns
from psla_jax.training.step import State, zero_progress
from psla_jax.training.summary import AGGREGATES, epoch_name, read_rows, summarise
from psla_jax.training.trainer import make_trainer, require_known, require_usable

RESULT = "result.csv"
SAVE = 64
"""Control code that requests a checkpoint. A signal's number, which is never 64, requests to stop."""


def train(config: RunConfig, *, cache_programs: bool = False) -> list[ModelSummary]:
    """Trains, evaluates and aggregates a model; resumes if its run directory holds an unfinished run.

    Args:
        config: the config of the run.
        cache_programs: cache the traced step, so that the next process starts sooner, see
            :func:`psla_jax.training.trainer.make_trainer`.

    Returns:
        The rows of the summary: best single model, weight average(s), moving average, checkpoint ensemble.

    Raises:
        ValueError: a subclass of this package, for unusable settings or data, before the first training step.
        TrainingError: the loss is not finite.
        SaveError: a checkpoint cannot be written.
        PeerError: another process of the run is gone or has failed.
        Stopped: the process received a signal, and has saved its work.
    """
    with distributed.session(config.distributed), compilation_cache():
        return _train(config, cache_programs)


def _train(config: RunConfig, cache_programs: bool) -> list[ModelSummary]:
    placement = Placement.over_all_devices()
    directory = Path(config.run_dir)
    logger = Logger(silent=not distributed.is_primary())
    with distributed.agree():
        require_known(config)
        data = resolve.load_data(config, logger.info)
        resolve.require_outputs(config, data)
        config = resolve.with_loss(config, data)
    config = resolve.recorded(config, directory)

    def require_compatible() -> list[str]:
        return distributed.on_primary(lambda: run_directory.require_compatible(directory, config, data), RunError)

    require_compatible()
    distributed.on_primary(lambda: datasets.check_clips(data, config.data, logger.info, config.frontend), DataError)
    with run_directory.exclusive(directory):
        edited_sets = require_compatible()
        config, measured = resolve.measured(config, data, logger)
        steps = math.ceil(len(data.train) / config.data.batch_size)
        notes = [*run_directory.extension_notes(directory, config, steps), *measured, *resolve.notes(config)]
        run_directory.write_metadata(directory, config, data)
        with StopHandler() as stop:
            run = open_run(directory, config, data, placement, stop, cache_programs)
            notes += [
                f"{name} was edited since this run was started, which data.edited accepts" for name in edited_sets
            ]
            for note in notes:
                run.logger.info(note)
            with run.trackers:
                run.fit()
                return run.summarise()


def open_run(
    directory: Path, config: RunConfig, data: DataSets, placement: Placement, stop: StopHandler, cache_programs: bool
) -> Run:
    """Builds model and trainer for a run directory with metadata."""
    if config.data.windows:
        samples, grid = config.frontend.num_samples, Grid.of(config.frontend)
        grid.require_covering(samples, grid.hop_frames(samples))
    dtype = activations(config.optimizer.precision)
    model = factory.from_config(config.model, len(data.vocabulary), dtype, nnx.Rngs(config.seed))
    if config.model.custom_code:
        frames, mels = config.frontend.target_length, config.frontend.num_mels
        require_trainable(model, config.model.name, len(data.vocabulary), frames, mels)
    steps = math.ceil(len(data.train) / config.data.batch_size)
    trainer = make_trainer(
        config, model, steps, placement, loss=teachers.run_loss(config, data),
        teacher=teachers.online_teacher(config, data), cache_programs=cache_programs,
    )  # fmt: skip
    require_usable(trainer, len(data.vocabulary))
    logger = Logger(directory / LOG, silent=not distributed.is_primary())
    trackers = Trackers(config.log if distributed.is_primary() else (), directory, flatten(config), logger.info)
    data = data.shared(directory / ".index")
    scores = teachers.stored_scores(directory, config, data), teachers.taught_scores(config, data, placement)
    return Run(RunArtifacts(directory, config, data, trainer, model, logger, stop, *scores), steps, trackers)


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
    trackers: Trackers

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
        rows = read_rows(self.directory / RESULT)
        if not (self.directory / SUMMARY).is_file():
            self.trackers.open(len(rows) * self.steps_per_epoch, len(rows))
        measured = summarise(self.artifacts, rows)
        self.trackers.results(tables.results(measured))
        return measured

    def fit(self) -> None:
        """Trains the missing epochs; with ``optimizer.patience``, up to the one at which training stops early."""
        checkpoints = RunCheckpoints(self.directory / CHECKPOINTS)
        try:
            if not self._is_trained(checkpoints):
                progress = self._resume(checkpoints)
                self._log_start(progress.step)
                self.trackers.open(progress.step, len(progress.rows))
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
            best = best_epoch(rows, self.config)
            self.logger.info(
                f"training ended early, after epoch {len(rows)} of {self.epochs}: epoch {best} is still the best "
                f"(optimizer.patience is {self.config.optimizer.patience})"
            )

    def _is_trained(self, checkpoints: RunCheckpoints) -> bool:
        """Returns whether training has ended and all its epochs are in the table, for every process."""
        table = self.directory / RESULT
        rows = read_rows(table) if table.is_file() else []
        last = checkpoints.steps()[:1] == [len(rows) * self.steps_per_epoch]
        return not distributed.any_process(not (last and is_complete(rows, self.config)))

    def _ends_after(self, rows: list[EpochRow]) -> bool:
        """Returns whether training ends after these epochs, as the primary process decides."""
        return distributed.on_primary(lambda: is_complete(rows, self.config), RunError)

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
        notes = teachers.notes(self.artifacts.trainer.teacher, self.artifacts.teacher)
        for note in [*notes, *setting_notes.notes(self.config, self.artifacts.model, self.steps_per_epoch)]:
            self.logger.info(note)
        if padding := self._num_padding_rows():
            self.logger.info(
                f"{padding:,} rows of an epoch have no clip, and the batch statistics of {self.config.model.name} "
                "include them: let its call take valid (batch,), 0 for such rows, or use a data.batch_size that "
                "divides the clips and is divided by the devices"
            )
        if is_exclusive(self.config.optimizer.loss):
            name = "cross-entropy" if self.config.optimizer.loss == "ce" else self.config.optimizer.loss
            by_accuracy = data.primary == VALIDATION and selecting_columns(self.config)[0] == ACCURACY
            chosen = ", and the best epoch is the most accurate" if by_accuracy else ""
            self.logger.info(f"every clip has exactly one label: the loss is {name}{chosen}")
        if step:
            self.logger.info(f"resuming in epoch {step // self.steps_per_epoch + 1}, after step {step}")
            return
        counts = data.train.class_counts()
        listed = "\n".join(f"{name}: {n}" for name, n in zip(data.vocabulary.names, counts))
        self.logger.debug(f"clips per class in the training set\n{listed}")

    def _num_padding_rows(self) -> int:
        """Returns the number of rows without a clip in an epoch; 0 if the model ignores them."""
        if not self.config.model.custom_code or ignores_padding(self.artifacts.model):
            return 0
        placement, accumulate = self.artifacts.trainer.placement, self.config.optimizer.accumulate
        rows = placement.padded_size(self.config.data.batch_size, accumulate) * self.steps_per_epoch
        return rows - len(self.artifacts.data.train)

    def _fit(self, checkpoints: RunCheckpoints, progress: Progress) -> None:
        config, trainer, data, first_step = self.config, self.artifacts.trainer, self.artifacts.data, progress.step
        source = self.artifacts.train_source()
        own_rows = trainer.placement.rows(config.data.batch_size, config.optimizer.accumulate)
        source.require_usable()
        workers, threads = config.data.workers, config.data.threads
        stream = batches(source, workers=workers, threads=threads, start=first_step, rows=own_rows)
        profile = Profile(self.directory / "profile", config.profile, first_step)
        ensemble = RunningEnsemble()
        for epoch in range(1, len(progress.rows) + 1):
            ensemble.add(self.artifacts.scores(data.primary, epoch_name(epoch)))
        with contextlib.closing(stream):
            while not self._ends_after(progress.rows):
                monitor = self._monitor(progress)
                progress = self._train_epoch(checkpoints, progress, stream, monitor, profile)
                resumed = progress.step == first_step
                rows = [*progress.rows, self._end_epoch(checkpoints, progress, ensemble, resumed)]
                self._publish(rows)
                state = {**progress.state, "progress": trainer.placement.replicate(zero_progress())}
                progress = Progress(state, rows, progress.step, set())

    def _monitor(self, progress: Progress) -> TrainingMonitor:
        return TrainingMonitor(
            self.artifacts.data.train,
            progress.failed,
            skip=self.config.optimizer.nonfinite == "skip",
            log=self.logger.info,
            curves=self.trackers.steps,
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
        sums = jax.device_get(state["progress"])
        rate = make_schedule(self.config.optimizer, self.steps_per_epoch)(epoch * self.steps_per_epoch - 1)
        loss = self._held_out_loss(scores)
        if not resumed or distributed.any_process(not artifacts.has_model(name)):
            artifacts.save_model(name, weights, {"epochs": [epoch], "set": kind, "mAP": metrics.mAP})
        if average := state.get("ema"):
            artifacts.save_model(EMA, (average["params"], average["batch_stats"]), {"epochs": [*range(1, epoch + 1)]})
        values = (
            epoch, metrics.mAP, metrics.mAUC, metrics.precision, metrics.recall, metrics.d_prime,
            sums["loss"] / max(sums["count"], 1.0), loss, ensemble_metrics.mAP, ensemble_metrics.mAUC, rate,
        )  # fmt: skip
        row: dict[str, Any] = {name: float(value) for name, value in zip(EPOCH_COLUMNS, values)} | {"epoch": epoch}
        single = {} if math.isnan(metrics.accuracy) else {ACCURACY: metrics.accuracy}
        row |= single | artifacts.evaluators(scores)
        counts = {"train/skipped_steps": float(sums["skipped"]), "train/clips_set_aside": len(progress.failed)}
        histograms = {f"{kind}/AP_per_class": metrics.per_class_ap, f"{kind}/AUC_per_class": metrics.per_class_auc}
        self.trackers.epoch(
            counts | {f"{kind}/{name}": value for name, value in row.items() if name != "epoch"}, histograms, epoch
        )
        return row

    def _held_out_loss(self, scores: Scores) -> float:
        """Returns the mean loss of held-out clips, without label smoothing."""
        config = dataclasses.replace(
            self.config, optimizer=dataclasses.replace(self.config.optimizer, label_smoothing=0.0)
        )
        loss = teachers.label_loss(config, self.artifacts.data)
        arrays = jnp.asarray(scores.scores), jnp.asarray(scores.labels)
        valid = jnp.ones(len(scores.scores))
        return float(losses.call(loss, *arrays, {"valid": valid}).mean())

    def _publish(self, rows: list[EpochRow]) -> None:
        """Writes ``result.csv``, and logs the epoch's metrics."""
        row, columns, kind = rows[-1], epoch_columns(rows), self.artifacts.data.primary
        if distributed.is_primary():
            tables.write_csv(self.directory / RESULT, columns, rows)
        accuracy = f"accuracy {row[ACCURACY]:.4f}  " if ACCURACY in row else ""
        further = "".join(f"  {name} {row[name]:.4f}" for name in columns if name not in (*EPOCH_COLUMNS, ACCURACY))
        self.logger.info(
            f"epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  {kind}: "
            f"loss {row['valid_loss']:.4f}  {accuracy}mAP {row['mAP']:.4f}  AUC {row['mAUC']:.4f}  "
            f"ensemble mAP {row['ensemble_mAP']:.4f}{further}"
        )


def _with_control(batch: Batch, control: int) -> Batch:
    """Adds this process's control code to the batch, if there are other processes."""
    if distributed.process_count() == 1:
        return batch
    return {**batch, CONTROL: np.full(len(batch["valid"]), control, np.int32)}
