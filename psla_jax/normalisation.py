"""Mean and standard deviation of a data set's log-mel, to normalise by or to compare with what is normalised by."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from psla_jax import audio
from psla_jax.config import Channel, FrontendConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.findings import LogMel
from psla_jax.data.threads import in_order
from psla_jax.frontend import FRAME_LENGTH, FRAME_SHIFT, Frontend

_BATCH = 8


def log_mel_statistics(
    data: Datafile,
    clips: Sequence[int] | np.ndarray,
    config: FrontendConfig,
    *,
    channel: Channel,
    workers: int | None = None,
    done: Callable[[int], None] = lambda clips: None,
) -> LogMel | None:
    """Measures what the model would see of some clips before normalisation, over all frames that are sound.

    Args:
        data: the set.
        clips: which of its clips; one that cannot be read is left out.
        config: how much of a clip counts; its mean and standard deviation play no part.
        channel: how several channels become one.
        workers: threads that read; None or 0 for one per core and a few more.
        done: called with the number of clips done since the last call, in whole batches.

    Returns:
        None if no clip has a frame.
    """
    frontend = Frontend.from_config(config)
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    waveforms = in_order(lambda clip: _waveform(data.wav(int(clip)), channel, frontend.num_samples), clips, threads)
    frames = used = 0
    total = squares = 0.0
    for batch, lengths in _batches(waveforms, frontend.num_samples, len(clips)):
        values = np.asarray(frontend.log_mel(batch, lengths))
        counts = np.where(lengths < FRAME_LENGTH, 0, 1 + (lengths - FRAME_LENGTH) // FRAME_SHIFT)
        sound = values[np.arange(values.shape[1]) < counts[:, None]].astype(np.float64)
        frames, used = frames + sound.size, used + int(np.count_nonzero(counts))
        total, squares = total + sound.sum(), squares + np.square(sound).sum()
        done(_BATCH)
    if not frames:
        return None
    mean = total / frames
    return LogMel(float(mean), math.sqrt(max(squares / frames - mean**2, 0.0)), used)


def _waveform(path: str, channel: Channel, samples: int) -> np.ndarray:
    """A clip as the frontend takes it; of one that cannot be read, nothing."""
    try:
        waveform = audio.read(path, channel=channel)
    except audio.AudioError:
        return np.zeros(0, np.float32)
    return (waveform - waveform.mean())[:samples]


def _batches(waveforms: Iterator[np.ndarray], samples: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one shape, ``(batch, samples)``, and the length of each row; the last is filled with empty rows."""
    for _ in range(0, count, _BATCH):
        batch, lengths = np.zeros((_BATCH, samples), np.float32), np.zeros(_BATCH, np.int32)
        for row, waveform in zip(range(_BATCH), waveforms):
            batch[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        yield batch, lengths
