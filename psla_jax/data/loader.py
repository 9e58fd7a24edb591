"""Batches of waveforms and labels for training and evaluation, read from a datafile with Grain.

A batch (:data:`Batch`) is a dictionary of NumPy arrays with one row per clip. The shapes are the same in every batch of
a source: ``batch`` is ``data.batch_size`` (or the number of requested rows), ``samples`` the input length of the model
and ``classes`` the size of the vocabulary.

=============== ==================== ======= ===========================================================================
Field           Shape                dtype   Content
=============== ==================== ======= ===========================================================================
``waveform``    ``(batch, samples)`` float32 Mono audio at the rate of the model, full scale 1. The mean of the whole
                                             clip (at most ten minutes) is subtracted, then its end is cut or padded.
``num_samples`` ``(batch,)``         int32   Number of samples of ``waveform`` before the padding, 0 to ``samples``.
``labels``      ``(batch, classes)`` float32 1 for the classes of the clip, else 0; a weighted mean of the labels of
                                             both clips, in [0, 1], for a row with mixup.
``valid``       ``(batch,)``         float32 1 for a clip; 0 for a row that loss and metrics must ignore: padding of
                                             the last batch of an epoch or for the devices, or an unreadable clip.
``clip``        ``(batch,)``         int64   Index of the (first) clip in the datafile; -1 for padding.
``left_out``    ``(batch,)``         int32   Number of samples of the (first) clip that were cut off.
``flawed``      ``(batch,)``         int32   1 if the (first) clip is damaged, has channels that cancel each other, or
                                             samples far beyond full scale, else 0; only for evaluation.
``narrow``      ``(batch,)``         int32   1 if the (first) clip has a lower sample rate than the model, and so lacks
                                             the upper frequencies, else 0; only for evaluation.
``failed``      ``(batch,)``         int64   Index of the clip that could not be read for this row, else -1. It is the
                                             clip itself if ``valid`` is 0, else the mixup partner, and the row is then
                                             left unmixed.
=============== ==================== ======= ===========================================================================

``waveform``, ``num_samples`` and ``labels`` are 0 in rows that are not valid. Mixup precedes the cut: the mix has the
length of the first clip and is zero-mean again.

Sources support random access, and a training row is a pure function of (seed, epoch, sample). The batches therefore do
not depend on the number of workers and threads, and a resumed run continues the same sequence from any batch.
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

from psla_jax.audio.decode import MAX_CLIP_SECONDS, AudioError, in_threads
from psla_jax.audio.reading import Reading
from psla_jax.audio.segments import duration, read
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel, DataConfig, SamplingConfig
from psla_jax.data.datafile import Datafile
from psla_jax.sampling.balance import epoch_order
from psla_jax.sampling.mixup import draw_mix, mix_waveforms

Batch = dict[str, np.ndarray]
"""One array per field, see the table at the top of this module."""
Row = dict[str, Any]
"""One row of a batch: the same fields without the leading dimension."""
PREFETCHED_BATCHES = 4
"""Least size of the prefetch buffer of a reader, in batches."""


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of a datafile, mixed down by `channel`, at the rate of `grid`, padded to rows of `num_samples`."""

    datafile: Datafile
    num_samples: int
    channel: Channel
    grid: Grid = field(default_factory=Grid)

    def waveform(self, clip: int, reading: Reading | None = None) -> np.ndarray:
        """Returns the zero-mean waveform of a clip, float32 ``(samples,)``, at most its first ten minutes.

        `reading` receives what is peculiar about it. Raises AudioError if the clip cannot be read.
        """
        samples = self.read(clip, MAX_CLIP_SECONDS, reading)
        samples -= samples.mean()
        return samples

    def read(self, clip: int, seconds: float, reading: Reading | None = None) -> np.ndarray:
        """Returns at most the first `seconds` of the waveform of a clip; arguments and errors of :meth:`waveform`."""
        rate = self.grid.rate
        return read(self.datafile.audio(clip), channel=self.channel, seconds=seconds, reading=reading, sample_rate=rate)

    def num_clip_samples(self, clip: int) -> int:
        """Returns the number of samples of a clip at the rate of the model, 0 if it cannot be read."""
        try:
            return round(duration(self.datafile.audio(clip)) * self.grid.rate)
        except AudioError:
            return 0

    def row(
        self, clip: int, waveform: np.ndarray, labels: np.ndarray, failed: int = -1, *, reading: Reading | None = None
    ) -> Row:
        """Returns a valid row with the waveform cut or zero-padded to `num_samples`, and what `reading` showed."""
        reading = reading or Reading()
        cut = waveform[: self.num_samples]
        padded = np.empty(self.num_samples, np.float32)
        padded[: len(cut)], padded[len(cut) :] = cut, 0.0
        return {
            "waveform": padded,
            "num_samples": np.int32(len(cut)),
            "left_out": np.int32(len(waveform) - len(cut)),
            "flawed": np.int32(reading.is_flawed),
            "narrow": np.int32(0 < reading.rate < self.grid.rate),
            "labels": labels,
            "valid": np.float32(1.0),
            "clip": np.int64(clip),
            "failed": np.int64(failed),
        }

    def invalid_row(self, clip: int = -1) -> Row:
        """Returns a row with ``valid`` 0: padding, or the unreadable clip `clip`."""
        row = self.row(clip, np.zeros(0, np.float32), np.zeros(self.datafile.num_classes, np.float32), failed=clip)
        return {**row, "valid": np.float32(0.0)}


@dataclass(frozen=True)
class EvaluationSource:
    """Every clip once, in the order of the datafile, padded to whole batches."""

    reader: ClipReader
    batch_size: int
    clip_of_row = None
    """As for :class:`WindowSource`: the field ``clip`` is the index of the clip itself."""

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    def __getitem__(self, item: int) -> Row:
        clip = int(item)
        if clip >= len(self.reader.datafile):
            return self.reader.invalid_row()
        reading = Reading()
        try:
            waveform = self.reader.waveform(clip, reading)
        except AudioError:
            return self.reader.invalid_row(clip)
        return self.reader.row(clip, waveform, self.reader.datafile.multi_hot(clip), reading=reading)


@dataclass(frozen=True)
class WindowSource:
    """Every window of every clip, in the order of the datafile, padded to whole batches.

    The windows are those of ``psla tag``: they overlap by half, and the mean of each is subtracted. The field ``clip``
    is the number of the window.
    """

    reader: ClipReader
    batch_size: int
    clip_of_row: np.ndarray
    """Index of the clip of each window, ``(windows,)``."""
    _decoded: threading.local = field(default_factory=threading.local, compare=False, repr=False)

    @classmethod
    def of(cls, reader: ClipReader, batch_size: int) -> WindowSource:
        """Returns the windows of all clips, whose durations are looked up; an unreadable clip has a single window.

        Raises WindowError if a window is shorter than an output frame.
        """
        size, grid, clips = reader.num_samples, reader.grid, range(len(reader.datafile))
        hop = grid.hop_frames(size)
        grid.require_covering(size, hop)
        lengths = in_threads(reader.num_clip_samples, clips, "Looking up durations", progress=False)
        counts = [len(grid.window_starts(length, size, hop)) for length in lengths]
        return cls(reader, batch_size, np.repeat(clips, counts))

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.clip_of_row) / self.batch_size)

    def __getitem__(self, item: int) -> Row:
        window = int(item)
        if window >= len(self.clip_of_row):
            return self.reader.invalid_row()
        clip, size, grid = int(self.clip_of_row[window]), self.reader.num_samples, self.reader.grid
        try:
            waveform = self._recording(clip)
        except AudioError:
            return self.reader.invalid_row(window)
        # A header may state another length than what is read of a damaged file.
        starts = grid.window_starts(len(waveform), size, grid.hop_frames(size))
        number = window - int(np.searchsorted(self.clip_of_row, clip))
        if number >= len(starts):
            return self.reader.invalid_row()
        start = starts[number] * grid.output_samples
        samples = waveform[start : start + size]
        labels = self.reader.datafile.multi_hot(clip)
        return self.reader.row(window, samples - samples.mean(), labels, reading=self._decoded.reading)

    def _recording(self, clip: int) -> np.ndarray:
        """Returns the whole waveform of a clip, which each thread keeps for the next window."""
        if getattr(self._decoded, "clip", None) != clip:
            self._decoded.reading = Reading()
            waveform = self.reader.read(clip, math.inf, self._decoded.reading)
            self._decoded.waveform, self._decoded.clip = waveform, clip
        return self._decoded.waveform


HeldOutSource = EvaluationSource | WindowSource


@dataclass(frozen=True)
class TrainSource:
    """All epochs in sequence; an epoch draws as many clips as the datafile has and is padded to whole batches.

    Balanced sampling and mixup (PSLA, section III-C) happen here; the other settings in `sampling` apply on the device.
    """

    reader: ClipReader
    batch_size: int
    epochs: int
    sampling: SamplingConfig
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.epochs * self.num_batches * self.batch_size

    def __getstate__(self) -> dict:
        # Worker processes recompute the cached weights and orders.
        return {**{k: v for k, v in self.__dict__.items() if k != "_weights"}, "_orders": {}}

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch."""
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    @functools.cached_property
    def _weights(self) -> np.ndarray | None:
        return self.reader.datafile.clip_weights() if self.sampling.balanced else None

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(len(self.reader.datafile), self._weights, seed=self.seed, epoch=epoch)
            # Prefetching touches two epochs at a time at most.
            for finished in [e for e in list(self._orders) if e < epoch - 1]:
                self._orders.pop(finished, None)
            self._orders[epoch] = order
        return order

    def __getitem__(self, item: int) -> Row:
        epoch, sample = divmod(int(item), self.num_batches * self.batch_size)
        if sample >= len(self.reader.datafile):
            return self.reader.invalid_row()
        clip = int(self._order(epoch)[sample])
        try:
            waveform = self.reader.waveform(clip)
        except AudioError:
            return self.reader.invalid_row(clip)
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
class RowSubset:
    """The same rows of every batch of a source, for one of several processes; rows beyond the batch are padding."""

    source: TrainSource | HeldOutSource
    rows: range

    def __len__(self) -> int:
        return len(self.source) // self.source.batch_size * len(self.rows)

    def __getitem__(self, item: int) -> Row:
        batch, position = divmod(int(item), len(self.rows))
        row = self.rows[position]
        if row >= self.source.batch_size:
            return self.source.reader.invalid_row()
        return self.source[batch * self.source.batch_size + row]


class LoaderError(RuntimeError):
    """A loader process died; the message gives the remedy."""


def batches(
    source: TrainSource | HeldOutSource,
    *,
    workers: int = 0,
    threads: int = 2,
    start: int = 0,
    stop: int | None = None,
    rows: range | None = None,
) -> Generator[Batch]:
    """Yields the batches of a source (see the top of this module), read ahead in threads or worker processes.

    Args:
        source: training or evaluation clips.
        workers: number of loader processes; 0 reads in threads of this process. It does not change the batches.
        threads: number of batches read concurrently, per process.
        start: index of the first batch, counted over all epochs; a resumed run starts at its next step.
        stop: index after the last batch; None for all batches.
        rows: rows to read of every batch (:meth:`psla_jax.runtime.sharding.Placement.rows`), of which those beyond the
            batch size are padding; None for all rows of the batch.

    Raises:
        LoaderError: a worker process died.
    """
    rows_source = source if rows is None else RowSubset(source, rows)
    dataset = grain.MapDataset.source(rows_source).batch(source.batch_size if rows is None else len(rows))[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCHED_BATCHES, threads))
    stream = dataset.to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl's own entry point parses.
            flags.FLAGS.mark_as_parsed()
        # Python's resource tracker frees the shared memory of terminated workers; its warning is of no use.
        sys.warnoptions.append("ignore:resource_tracker")
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_init_worker)
    return _report_dead_workers(iter(stream))


def _report_dead_workers(stream: Iterator[Batch]) -> Generator[Batch]:
    """Yields from the stream and raises LoaderError if a worker was killed, usually for lack of memory."""
    try:
        yield from stream
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise LoaderError(
            "a loader process was killed, usually because memory ran out: start the same command again with fewer "
            "data.workers to resume."
        ) from error
    finally:
        getattr(stream, "close", lambda: None)()  # Ends the worker processes and frees their shared memory.


def _init_worker(*_: int) -> None:
    """Makes a worker ignore signals, which its parent receives as well, and exit with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # Threads of Grain may wait for a queue forever.


def train_source(
    datafile: Datafile,
    data: DataConfig,
    sampling: SamplingConfig,
    *,
    num_samples: int,
    epochs: int,
    seed: int,
    grid: Grid | None = None,
) -> TrainSource:
    """Returns the training source for a config; `num_samples` is the input length of the model, at `grid.rate`."""
    reader = ClipReader(datafile, num_samples, data.channel, grid or Grid())
    return TrainSource(reader, data.batch_size, epochs, sampling, seed)


def plain_source(
    datafile: Datafile, data: DataConfig, *, num_samples: int, seed: int, grid: Grid | None = None
) -> TrainSource:
    """Returns one shuffled pass over the training set without balancing or augmentation, to re-estimate batch_stats."""
    plain = SamplingConfig(balanced=False, mixup=0.0, freq_mask=0, time_mask=0)
    return train_source(datafile, data, plain, num_samples=num_samples, epochs=1, seed=seed, grid=grid)


def evaluation_source(
    datafile: Datafile, data: DataConfig, *, num_samples: int, grid: Grid | None = None
) -> HeldOutSource:
    """Returns the evaluation source for a config; arguments as for :func:`train_source`.

    With ``data.windows``, its rows are windows, and durations are looked up.
    """
    reader = ClipReader(datafile, num_samples, data.channel, grid or Grid())
    return WindowSource.of(reader, data.batch_size) if data.windows else EvaluationSource(reader, data.batch_size)
