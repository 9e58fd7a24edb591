"""Mean and standard deviation of the log-mel values of a data set, for the normalisation of model inputs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from psla_jax.audio import decode, segments
from psla_jax.audio.frontend import Frontend
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

    The clips are read as in training, without augmentation; `mean` and `std` of `config` are not used. Unreadable
    clips are skipped; the result is None if no clip is as long as a frame. `workers` threads read the clips; None or 0
    for the number of cores plus 4, at most 32. `advance` receives the number of clips processed since its last call,
    rounded up to whole batches.
    """
    frontend = Frontend.from_config(dataclasses.replace(config, mean=0.0, std=1.0))
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    waveforms = in_order(lambda clip: _waveform(data.audio(int(clip)), channel, frontend), clips, threads)
    num_values = num_clips = 0
    total = total_squares = 0.0
    for batch, lengths in _batches(waveforms, frontend.num_samples, len(clips)):
        log_mel = np.asarray(frontend.log_mel(batch, lengths))
        frames = np.asarray(frontend.num_frames(lengths))
        values = log_mel[np.arange(log_mel.shape[1]) < frames[:, None]].astype(np.float64)
        num_values, num_clips = num_values + values.size, num_clips + int(np.count_nonzero(frames))
        total, total_squares = total + values.sum(), total_squares + np.square(values).sum()
        advance(_BATCH)
    if not num_values:
        return None
    mean = total / num_values
    return LogMelStatistics(float(mean), math.sqrt(max(total_squares / num_values - mean**2, 0.0)), num_clips)


def _waveform(clip: decode.StrPath, channel: Channel, frontend: FrontendConfig) -> np.ndarray:
    """Returns the zero-mean waveform of a clip, cut to the input length; an empty one if it cannot be read.

    The mean is that of its first ten minutes, as in training.
    """
    try:
        waveform = segments.read(
            clip, channel=channel, seconds=decode.MAX_CLIP_SECONDS, sample_rate=frontend.sample_rate
        )
    except decode.AudioError:
        return np.zeros(0, np.float32)
    return (waveform - waveform.mean())[: frontend.num_samples]


def _batches(waveforms: Iterator[np.ndarray], samples: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields zero-padded batches ``(_BATCH, samples)`` and the length of each row; the last has empty rows."""
    for _ in range(0, count, _BATCH):
        batch, lengths = np.zeros((_BATCH, samples), np.float32), np.zeros(_BATCH, np.int32)
        for row, waveform in zip(range(_BATCH), waveforms):
            batch[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        yield batch, lengths
