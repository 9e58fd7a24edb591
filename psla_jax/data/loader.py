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
``teacher``     ``(batch, classes)`` float32 Scores of a teacher (:mod:`psla_jax.data.teacher`), mixed like the labels;
                                             only in training with ``distill.teacher``.
``taught``      ``(batch, classes)`` float32 Instead, a teacher's scores of the augmented row
                                             (:mod:`psla_jax.data.taught`), which are not mixed.
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

``waveform``, ``num_samples`` and the targets are 0 in rows that are not valid. Mixup precedes the cut: the mix has the
length of the first clip and is zero-mean again.

Sources support random access, and a training row is a pure function of (seed, epoch, sample). The batches therefore do
not depend on the number of workers and threads, and a resumed run continues the same sequence from any batch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from psla_jax.audio.decode import AudioError, StrPath, in_threads
from psla_jax.audio.reading import Reading
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel, ConfigError, DataConfig, FrontendConfig, SamplingConfig
from psla_jax.data.clip_reader import ClipReader, Row, put_padded
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import read_datafile
from psla_jax.data.train_source import TrainSource, train_source
from psla_jax.runtime.allocator import retain_freed_memory
from psla_jax.vocabulary.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]
"""One array per field, see the table at the top of this module."""
ALIGNMENT = 64
"""Bytes of which the address of a batch is a multiple, so that JAX uses it on a CPU without a copy."""
PREFETCHED_BATCHES = 4
"""Least size of the prefetch buffer of a reader, in batches."""


@dataclass(frozen=True)
class EvaluationSource:
    """Every clip once, in the order of the datafile, padded to whole batches."""

    reader: ClipReader
    batch_size: int
    clip_of_row = None
    """As for :class:`WindowSource`: the field ``clip`` is the index of the clip itself."""

    def invalid_row(self) -> Row:
        """Returns a row of padding."""
        return self.reader.invalid_row()

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    def __getitem__(self, item: int) -> Row:
        return self.reader.pad(self.row(item))

    def row(self, item: int) -> Row:
        """Returns a row whose waveform is not padded."""
        clip = int(item)
        if clip >= len(self.reader.datafile):
            return self.reader.invalid_row()
        reading = Reading()
        try:
            waveform = self.reader.waveform(clip, reading)
        except AudioError:
            return self.reader.invalid_row(clip)
        return self.reader.row(clip, waveform, self.reader.targets(clip), reading=reading)


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
        return self.reader.pad(self.row(item))

    def row(self, item: int) -> Row:
        """Returns a row whose waveform is not padded."""
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
        targets, reading = self.reader.targets(clip), self._decoded.reading
        return self.reader.row(window, samples - samples.mean(), targets, reading=reading)

    def invalid_row(self) -> Row:
        """Returns a row of padding."""
        return self.reader.invalid_row()

    def _recording(self, clip: int) -> np.ndarray:
        """Returns the whole waveform of a clip, which each thread keeps for the next window."""
        if getattr(self._decoded, "clip", None) != clip:
            self._decoded.reading = Reading()
            waveform = self.reader.read(clip, math.inf, self._decoded.reading)
            self._decoded.waveform, self._decoded.clip = waveform, clip
        return self._decoded.waveform


HeldOutSource = EvaluationSource | WindowSource


@dataclass(frozen=True)
class BatchSource:
    """The batches of a source, or the same rows of each of them for one of several processes.

    Every waveform is copied once, from its decoder to the batch.
    """

    source: TrainSource | HeldOutSource
    rows: range
    """Numbers of the rows of a batch; rows beyond the batch size are padding."""

    def __len__(self) -> int:
        return len(self.source) // self.source.batch_size

    def __getitem__(self, batch: int) -> Batch:
        first, rows = int(batch) * self.source.batch_size, []
        # Not in shared memory: batches that a process has prepared when it ends would stay there.
        waveforms = _aligned((len(self.rows), self.source.reader.num_samples))
        for number, waveform in zip(self.rows, waveforms, strict=True):
            padding = number >= self.source.batch_size
            row = self.source.invalid_row() if padding else self.source.row(first + number)
            put_padded(row.pop("waveform"), waveform)
            rows.append(row)
        return {"waveform": waveforms} | {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an uninitialised float32 array at a multiple of :data:`ALIGNMENT`."""
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


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
    dataset = grain.MapDataset.source(BatchSource(source, rows or range(source.batch_size)))[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCHED_BATCHES, threads))
    stream = dataset.to_iter_dataset(options)
    if workers:
        _allow_workers()
        # Python's resource tracker frees the shared memory of terminated workers; its warning is of no use.
        sys.warnoptions.append("ignore:resource_tracker")
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_init_worker)
    return _report_dead_workers(iter(stream))


def _allow_workers() -> None:
    """Marks absl's flags as parsed: Grain's worker processes read them, and only absl's own entry point parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


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
    """Makes a worker keep freed memory, ignore signals, which its parent receives as well, and exit with its parent."""
    retain_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # Threads of Grain may wait for a queue forever.


def evaluation_source(
    datafile: Datafile, data: DataConfig, *, num_samples: int, grid: Grid | None = None
) -> HeldOutSource:
    """Returns the evaluation source for a config; `num_samples` is the input length of the model, at `grid.rate`.

    With ``data.windows``, its rows are windows, and durations are looked up.
    """
    reader = ClipReader(datafile, num_samples, data.channel, grid or Grid())
    return WindowSource.of(reader, data.batch_size) if data.windows else EvaluationSource(reader, data.batch_size)


def loader(
    data: StrPath | Datafile,
    frontend: FrontendConfig | None = None,
    *,
    labels: StrPath | Vocabulary = "",
    sampling: SamplingConfig | None = None,
    epochs: int = 1,
    seed: int = 0,
    batch_size: int | None = 100,
    maps: Sequence[Callable[[Row], Row]] = (),
    channel: Channel = "mean",
    num_samples: int = 0,
) -> grain.MapDataset[Batch]:
    """Returns the batches of a datafile (see the top of this module) as a Grain dataset, for one's own training loop.

    With `sampling`, these are the batches that ``psla train`` reads: balanced sampling, mixup and the other steps for
    waveforms. Without it, every clip comes once, in the order of the datafile, as for evaluation. The dataset has
    random access (``dataset[3]``) and a length, can be transformed further, and ``iter(dataset)`` reads ahead in
    threads, with a state that Grain's checkpoints store. Worker processes, which use no device, read it by
    ``dataset.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=4))``, in the same order.

    Args:
        data: a datafile, its path, or a set of the embedded demo data such as ``demo:train``.
        frontend: the frontend, to whose rate waveforms are resampled, and to whose input length they are cut or
            zero-padded.
        labels: the classes of a datafile that is given by its path: ``audioset``, ``fsd50k``, ``demo``, a label file or
            a vocabulary.
        sampling: balanced sampling and augmentation of waveforms. Its settings for spectrograms apply on the device,
            see :func:`psla_jax.training.trainer.augmentation`.
        epochs: number of epochs, one after the other; each is padded to whole batches.
        seed: seed of the sampling; a training row is a function of (seed, epoch, sample).
        batch_size: clips per batch; None for single rows, without padding, which ``.batch`` combines.
        maps: functions from row to row, applied in this order before batching; they may add fields.
        channel: conversion of multi-channel audio to mono, ``mean`` or ``first``.
        num_samples: length of the waveforms at 16 kHz, instead of that of a frontend.

    Raises:
        ConfigError: neither `frontend` nor `num_samples` is given, or no `labels` for a path.
        DatafileError, VocabularyError: a file cannot be read.
        IngredientError: a step of `sampling` cannot be used.
    """
    if (frontend is None) == (num_samples == 0):
        raise ConfigError("the length of the waveforms is not given once: pass either a frontend or num_samples.")
    datafile = data if isinstance(data, Datafile) else read_datafile(data, labels)
    samples, grid = (num_samples, Grid()) if frontend is None else (frontend.num_samples, Grid.of(frontend))
    config = DataConfig(batch_size=1 if batch_size is None else batch_size, channel=channel)
    if sampling is None:
        held_out = evaluation_source(datafile, config, num_samples=samples, grid=grid)
        dataset = grain.MapDataset.source(held_out).repeat(epochs)
    else:
        source = train_source(datafile, config, sampling, num_samples=samples, epochs=epochs, seed=seed, grid=grid)
        source.require_usable()
        dataset = grain.MapDataset.source(source)
    _allow_workers()
    for transform in maps:
        dataset = dataset.map(transform)
    return dataset if batch_size is None else dataset.batch(batch_size)
