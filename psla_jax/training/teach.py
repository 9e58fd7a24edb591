"""Scores of a teacher for the augmented inputs that a training will see (``psla teach``).

The inputs are drawn as the training draws them, by (seed, epoch, sample) in the loader and by (seed, step) on the
device, and are not stored. A training with ``distill.teacher`` on the directory is therefore the same as one with
``distill.model``, up to float16 and to the scores that are stored of a row as their mean.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax.audio.frontend import Frontend
from psla_jax.audio.windows import Grid
from psla_jax.config import RunConfig, is_exclusive
from psla_jax.config_fields import ConfigError
from psla_jax.data import datasets
from psla_jax.data.datasets import DataError
from psla_jax.data.loader import Batch, batches
from psla_jax.data.taught import ARRAYS, CARD, PROGRESS, Card, read_progress
from psla_jax.data.teacher import TeacherError
from psla_jax.data.train_source import TrainSource, train_source
from psla_jax.models.platforms import layers_for
from psla_jax.runtime import distributed
from psla_jax.runtime.files import atomic_text
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.preemption import StopHandler, Stopped
from psla_jax.runtime.sharding import Placement
from psla_jax.training import resolve
from psla_jax.training.objective import augmented, microbatches, rejoined, with_spectrograms
from psla_jax.training.online_teacher import OnlineTeacher, fingerprints, load_teacher
from psla_jax.training.teachers import draws
from psla_jax.training.trainer import augmentation, step_key

FIELD = "--models"
SAVE_SECONDS = 60.0
"""Seconds between records of the progress."""


def teach(config: RunConfig, models: Sequence[str], out: str, top: int = 32) -> None:
    """Scores the augmented inputs of a training with a teacher; resumes if the directory holds a part of the scores.

    Args:
        config: the config of the training. Its run directory and the teacher that it names are not used.
        models: model or run directories of the teacher; several are averaged.
        out: directory to write.
        top: number of largest scores of a row that are stored; of the others, their mean is.

    Raises:
        ValueError: a subclass of this package, for unusable settings, data or models.
        Stopped: the process received a signal, and has saved its work.
    """
    with distributed.session(config.distributed):
        _teach(config, models, Path(out), top)


def _teach(config: RunConfig, models: Sequence[str], directory: Path, top: int) -> None:
    if top < 1:
        raise ConfigError(f"--top is {top}: store at least one score of a row.")
    if not models:
        raise TeacherError(f"{FIELD} is empty: name the models of the teacher.")
    config = replace(config, distill=replace(config.distill, teacher="", model=()))  # The teacher is yet to be stored.
    logger, placement = Logger(silent=not distributed.is_primary()), Placement.over_all_devices()
    with distributed.agree():
        data = resolve.load_data(config, logger.info)
        config = resolve.with_loss(config, data)
    config, measured = resolve.measured(config, data, logger)
    for note in measured:
        logger.info(note)
    train_only = replace(data, held_out={})
    distributed.on_primary(
        lambda: datasets.check_clips(train_only, config.data, logger.info, config.frontend), DataError
    )
    frontend, exclusive = Frontend.from_config(config.frontend), is_exclusive(config.optimizer.loss)
    teacher = load_teacher(
        models, frontend, data.vocabulary, exclusive=exclusive, trusted=config.model.custom_code, field=FIELD
    )
    for note in teacher.notes:
        logger.info(note)
    known = tuple(map(bool, teacher.known))
    members = tuple(fingerprints(models, FIELD))
    size = len(data.train), min(top, len(data.vocabulary))
    card = Card(draws(config, data, placement), members, size[1], known, config.optimizer.epochs, size[0])
    distributed.on_primary(lambda: _create(directory, card), TeacherError)
    source = train_source(
        data.train.share(directory / ".index"), config.data, config.sampling, num_samples=frontend.num_samples,
        epochs=config.optimizer.epochs, seed=config.seed, grid=Grid.of(frontend),
    )  # fmt: skip
    source.require_usable()
    Teaching(config, teacher, placement, source, card, directory, logger).run()


def _create(directory: Path, card: Card) -> None:
    """Creates the directory with empty arrays, or raises TeacherError if it holds something else."""
    if (directory / CARD).is_file():
        if Card.read(directory) != card:
            raise TeacherError(
                f"{directory} has scores of other models or settings: choose another folder with --out, or delete it."
            )
        return
    if directory.exists() and any(entry.suffix != ".npy" for entry in directory.iterdir()):
        raise TeacherError(f"{directory} holds other files: choose another folder with --out.")
    directory.mkdir(parents=True, exist_ok=True)
    rows = card.epochs * card.samples
    for name, dtype in ARRAYS.items():
        shape = (rows,) if name == "rest" else (rows, card.top)
        np.lib.format.open_memmap(directory / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
    with atomic_text(directory / CARD) as file:  # Last: a directory with a card is complete.
        file.write(card.to_json())


@dataclass(frozen=True, eq=False)
class Teaching:
    """The pass over all rows of a training."""

    config: RunConfig
    teacher: OnlineTeacher
    placement: Placement
    source: TrainSource
    card: Card
    directory: Path
    logger: Logger

    def run(self) -> None:
        """Computes and stores the missing scores."""
        accumulate, total = self.config.optimizer.accumulate, self.card.epochs * self.source.num_batches
        first = distributed.on_primary(lambda: read_progress(self.directory), TeacherError)
        rows = self.placement.rows(self.config.data.batch_size, accumulate)
        stream = batches(self.source, workers=self.config.data.workers, start=first, rows=rows)
        if first:
            self.logger.info(f"resuming after step {first:,} of {total:,}")
        with (
            contextlib.closing(stream),
            StopHandler() as stop,
            self.logger.progress("teaching", total, done=first) as bar,
        ):
            for number in self._store(stream, range(first, total)):
                bar.advance("")
                if distributed.any_process(bool(stop)) and number + 1 < total:
                    self._record(number + 1)
                    raise Stopped(stop.signal or 15, f"the scores of {number + 1} steps are saved")
        self._record(total)
        plural = "" if self.card.epochs == 1 else "s"
        self.logger.info(
            f"{self.directory}: scores of {self.card.epochs} epoch{plural} of {self.card.samples:,} clips, the largest "
            f"{self.card.top} of each row; train with --distill.teacher {self.directory}"
        )

    def _store(self, stream: Iterator[Batch], steps: range) -> Iterator[int]:
        """Stores the scores of every step and yields its number; records the progress from time to time."""
        primary, weights = distributed.is_primary(), self.placement.replicate(self.teacher.weights)
        paths = {name: self.directory / f"{name}.npy" for name in ARRAYS}
        stored = {name: np.load(path, mmap_mode="r+") for name, path in paths.items()} if primary else {}
        program, seed, saved = jax.jit(self._scores), np.uint32(self.config.seed & 0xFFFFFFFF), time.monotonic()
        size = self.source.batch_size
        for number in steps:
            batch = self.placement.shard_batch(next(stream))
            with layers_for(self.placement.platform, self.placement.mesh.size):
                scores = program(batch, seed, np.int32(number), weights)
            result = distributed.gather(scores)
            epoch, step = divmod(number, self.source.num_batches)
            count = min(size, self.card.samples - step * size)
            first = epoch * self.card.samples + step * size
            for name, array in stored.items():
                array[first : first + count] = np.asarray(result[name])[:count]
            if primary and time.monotonic() - saved > SAVE_SECONDS:
                for array in stored.values():
                    array.flush()
                self._write_progress(number + 1)
                saved = time.monotonic()
            yield number
        for array in stored.values():
            array.flush()

    def _record(self, steps: int) -> None:
        if distributed.is_primary():
            self._write_progress(steps)
        distributed.barrier("taught")

    def _write_progress(self, steps: int) -> None:
        with atomic_text(self.directory / PROGRESS) as file:
            file.write(json.dumps({"steps": steps}) + "\n")

    def _scores(
        self, batch: dict[str, jax.Array], seed: jax.Array, number: jax.Array, weights: Any
    ) -> dict[str, jax.Array]:
        """Returns the arrays of :data:`ARRAYS` for a batch, whose rows are those of the training step `number`."""
        frontend, accumulate = self.teacher.frontend, self.config.optimizer.accumulate
        augment, key = augmentation(self.config.sampling, frontend), step_key(seed, number)

        def score(part: dict[str, jax.Array], key: jax.Array) -> jax.Array:
            augment_key, _ = jax.random.split(key)  # The second one is that of drop-connect.
            seen = augmented(with_spectrograms(part, frontend), augment, augment_key)
            return jnp.where(self.teacher.known, self.teacher.scores(seen["spectrogram"], weights), seen["labels"])

        if accumulate == 1:
            scores = score(batch, key)
        else:
            parts = microbatches(batch, accumulate), jax.random.split(key, accumulate)
            scores = rejoined(jax.lax.map(lambda part: score(*part), parts))
        values, indices = jax.lax.top_k(scores, self.card.top)
        others = max(scores.shape[1] - self.card.top, 1)
        rest = jnp.maximum(scores.sum(axis=1) - values.sum(axis=1), 0.0) / others
        unread = batch["valid"] == 0
        return {
            "indices": indices.astype(jnp.uint16),
            "values": values.astype(jnp.float16),
            "rest": jnp.where(unread, jnp.nan, rest).astype(jnp.float16),
        }
