"""Mean and standard deviation of the log-mel values of a data set, for the normalisation of model inputs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from psla_jax.audio import decode, segments
from psla_jax.audio.frontend import FRAME_LENGTH, FRAME_SHIFT, Frontend
from psla_jax.config import Channel, FrontendConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.validate.findings import LogMelStatistics
from psla_jax.runtime.threads import in_order

_BATCH = 8


def log_mel_statistics(
    data: Datafile,
    clips: Sequence[int] | np.ndarray,
    config: FrontendConfig,
    *,
    channel: Channel,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> LogMelStatistics | None:
    """Computes the statistics of model inputs before normalisation, over all spectrogram frames without padding.

    Only the input length of `config` is used. Unreadable clips are skipped; the result is None if no clip is as long as
    a frame. `workers` threads read the clips; None or 0 for the number of cores plus 4, at most 32. `advance` receives
    the number of clips processed since its last call, rounded up to whole batches.
    """
    frontend = Frontend.from_config(config)
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    waveforms = in_order(lambda clip: _waveform(data.audio(int(clip)), channel, frontend.num_samples), clips, threads)
    num_values = num_clips = 0
    total = total_squares = 0.0
    for batch, lengths in _batches(waveforms, frontend.num_samples, len(clips)):
        log_mel = np.asarray(frontend.log_mel(batch, lengths))
        frames = np.where(lengths < FRAME_LENGTH, 0, 1 + (lengths - FRAME_LENGTH) // FRAME_SHIFT)
        values = log_mel[np.arange(log_mel.shape[1]) < frames[:, None]].astype(np.float64)
        num_values, num_clips = num_values + values.size, num_clips + int(np.count_nonzero(frames))
        total, total_squares = total + values.sum(), total_squares + np.square(values).sum()
        advance(_BATCH)
    if not num_values:
        return None
    mean = total / num_values
    return LogMelStatistics(float(mean), math.sqrt(max(total_squares / num_values - mean**2, 0.0)), num_clips)


def _waveform(clip: decode.StrPath, channel: Channel, samples: int) -> np.ndarray:
    """Returns the zero-mean waveform of a clip, cut to the input length; an empty one if it cannot be read."""
    try:
        waveform = segments.read(clip, channel=channel)
    except decode.AudioError:
        return np.zeros(0, np.float32)
    return (waveform - waveform.mean())[:samples]


def _batches(waveforms: Iterator[np.ndarray], samples: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields zero-padded batches ``(_BATCH, samples)`` and the length of each row; the last has empty rows."""
    for _ in range(0, count, _BATCH):
        batch, lengths = np.zeros((_BATCH, samples), np.float32), np.zeros(_BATCH, np.int32)
        for row, waveform in zip(range(_BATCH), waveforms):
            batch[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        yield batch, lengths
