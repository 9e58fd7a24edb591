"""From a datafile to batches of waveforms: Grain over random-access sources.

A batch is a dictionary of NumPy arrays, one row a clip:

- ``waveform (batch, samples) float32``, mean-free, cut or zero-padded to what the model sees;
- ``num_samples (batch,) int32``, how much of it is sound;
- ``labels (batch, classes) float32``;
- ``valid (batch,) float32``, 0 for rows without a clip (the end of an epoch, or a clip that cannot be read);
- ``clip (batch,) int64``, index in the datafile, -1 where there is none;
- ``failed (batch,) int64``, index of the clip that could not be read for this row, else -1.

Sources are random-access and their items functions of (seed, epoch, sample), so the stream is the same for any number
of workers, and starting later is slicing.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from psla_jax.audio import LONGEST_CLIP, AudioError, read
from psla_jax.config import Channel, DataConfig, SamplingConfig
from psla_jax.data.datafile import Datafile, clip_weights
from psla_jax.sampling.balance import epoch_order
from psla_jax.sampling.mixup import draw_mix, mix_waveforms

Batch = dict[str, np.ndarray]
Row = dict[str, Any]
"""One clip of a batch: arrays, and scalars that become arrays in the batch."""
READ_AHEAD = 4
"""Batches held ready per reader."""


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of a datafile as mean-free waveforms and lays them out as rows of a batch."""

    datafile: Datafile
    num_samples: int
    channel: Channel

    def waveform(self, clip: int) -> np.ndarray:
        """The clip, `(samples,)`, minus its mean; of one of more than ten minutes the beginning. Raises AudioError."""
        samples = read(self.datafile.wav(clip), channel=self.channel, seconds=LONGEST_CLIP)
        samples -= samples.mean()
        return samples

    def row(self, clip: int, waveform: np.ndarray, labels: np.ndarray, failed: int = -1) -> Row:
        """One row, cut or padded to the fixed length."""
        kept = waveform[: self.num_samples]
        padded = np.empty(self.num_samples, np.float32)
        padded[: len(kept)], padded[len(kept) :] = kept, 0.0
        return {
            "waveform": padded,
            "num_samples": np.int32(len(kept)),
            "labels": labels,
            "valid": np.float32(1.0),
            "clip": np.int64(clip),
            "failed": np.int64(failed),
        }

    def empty(self, clip: int = -1) -> Row:
        """A row that counts for nothing: no clip, or one (`clip`) that cannot be read."""
        silence = self.row(clip, np.zeros(0, np.float32), np.zeros(self.datafile.num_classes, np.float32), failed=clip)
        return {**silence, "valid": np.float32(0.0)}


@dataclass(frozen=True)
class EvaluationSource:
    """Every clip once, in the datafile's order; rows past the last clip fill the last batch."""

    reader: ClipReader
    batch_size: int

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    def __getitem__(self, item: int) -> Row:
        clip = int(item)
        if clip >= len(self.reader.datafile):
            return self.reader.empty()
        try:
            return self.reader.row(clip, self.reader.waveform(clip), self.reader.datafile.multi_hot(clip))
        except AudioError:
            return self.reader.empty(clip)


@dataclass(frozen=True)
class TrainSource:
    """All epochs one after the other: as many draws each as there are clips, the last batch filled with empty rows."""

    reader: ClipReader
    batch_size: int
    epochs: int
    sampling: SamplingConfig
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.epochs * self.num_batches * self.batch_size

    def __getstate__(self) -> dict:
        # Worker processes draw the order for themselves; what is cached here need not travel.
        return {**{k: v for k, v in self.__dict__.items() if k != "_weights"}, "_orders": {}}

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    @functools.cached_property
    def _weights(self) -> np.ndarray | None:
        return clip_weights(self.reader.datafile) if self.sampling.balanced else None

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(len(self.reader.datafile), self._weights, seed=self.seed, epoch=epoch)
            # Two epochs are in flight at most: the readers run a few batches ahead.
            for old in [e for e in list(self._orders) if e < epoch - 1]:
                self._orders.pop(old, None)
            self._orders[epoch] = order
        return order

    def __getitem__(self, item: int) -> Row:
        epoch, sample = divmod(int(item), self.num_batches * self.batch_size)
        if sample >= len(self.reader.datafile):
            return self.reader.empty()
        clip = int(self._order(epoch)[sample])
        try:
            waveform = self.reader.waveform(clip)
        except AudioError:
            return self.reader.empty(clip)
        return self._mixed(clip, waveform, epoch, sample)

    def _mixed(self, clip: int, waveform: np.ndarray, epoch: int, sample: int) -> Row:
        data, labels = self.reader.datafile, self.reader.datafile.multi_hot(clip)
        mix = draw_mix(self.sampling.mixup, len(data), seed=self.seed, epoch=epoch, sample=sample)
        if mix is None:
            return self.reader.row(clip, waveform, labels)
        try:
            partner = self.reader.waveform(mix.partner)
        except AudioError:
            return self.reader.row(clip, waveform, labels, failed=mix.partner)
        labels = np.float32(mix.weight) * labels + np.float32(1.0 - mix.weight) * data.multi_hot(mix.partner)
        return self.reader.row(clip, mix_waveforms(waveform, partner, mix.weight), labels)


@dataclass(frozen=True)
class Part:
    """The same rows of every batch of a source: what one of several processes reads."""

    source: TrainSource | EvaluationSource
    rows: range

    def __len__(self) -> int:
        return len(self.source) // self.source.batch_size * len(self.rows)

    def __getitem__(self, item: int) -> Row:
        batch, row = divmod(int(item), len(self.rows))
        return self.source[batch * self.source.batch_size + self.rows[row]]


class LoaderError(RuntimeError):
    """A loader process that is gone; the message says what to do."""


def batches(
    source: TrainSource | EvaluationSource,
    *,
    workers: int = 0,
    threads: int = 2,
    start: int = 0,
    stop: int | None = None,
    rows: range | None = None,
) -> Generator[Batch]:
    """The batches of a source, from number `start` up to `stop`, read ahead in threads or worker processes.

    Args:
        source: training or evaluation clips.
        workers: processes; 0 reads in threads of this one. The batches do not depend on it.
        threads: batches read at the same time, per process.
        start: number of the first batch, counted over all epochs: where a resumed run goes on.
        stop: number of the batch to end before; None for all.
        rows: of every batch; None for all of them.

    Raises:
        LoaderError: a worker process has died.
    """
    part = source if rows is None else Part(source, rows)
    dataset = grain.MapDataset.source(part).batch(source.batch_size if rows is None else len(rows))[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(READ_AHEAD, threads))
    stream = dataset.to_iter_dataset(options)
    if workers:
        _mark_flags_parsed()
        # The process that Python has for it gives back what workers held when they were ended, and need not say so.
        sys.warnoptions.append("ignore:resource_tracker")
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker)
    return _told(iter(stream))


def _told(stream: Iterator[Batch]) -> Generator[Batch]:
    """The stream; a worker that was killed, for want of memory as a rule, is no traceback."""
    try:
        yield from stream
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise LoaderError(
            "a loader process was ended from outside, as happens when memory runs out: start again with fewer "
            "data.workers to go on."
        ) from error
    finally:
        close = getattr(stream, "close", None)  # Ends worker processes, and gives their shared memory back.
        if close is not None:
            close()


def _begin_worker(*_: int) -> None:
    """A loader process leaves signals to its parent, which they reach as well, and does not outlive it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(0)


def _mark_flags_parsed() -> None:
    """Grain's workers read absl flags, which only absl's own entry point parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def train_source(
    datafile: Datafile, data: DataConfig, sampling: SamplingConfig, *, num_samples: int, epochs: int, seed: int
) -> TrainSource:
    """The training source that a config describes."""
    return TrainSource(ClipReader(datafile, num_samples, data.channel), data.batch_size, epochs, sampling, seed)


def plain_source(datafile: Datafile, data: DataConfig, *, num_samples: int, seed: int) -> TrainSource:
    """One pass over the training set without augmentation: what re-estimated batch statistics see."""
    plain = SamplingConfig(balanced=False, mixup=0.0, freq_mask=0, time_mask=0)
    return train_source(datafile, data, plain, num_samples=num_samples, epochs=1, seed=seed)


def evaluation_source(datafile: Datafile, data: DataConfig, *, num_samples: int) -> EvaluationSource:
    """The evaluation source that a config describes."""
    return EvaluationSource(ClipReader(datafile, num_samples, data.channel), data.batch_size)
