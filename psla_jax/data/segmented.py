"""Clips cut into segments of equal length, as a teacher labels weakly labelled clips (``distill.segments``)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from psla_jax.audio.decode import AudioError, in_threads
from psla_jax.audio.segments import duration
from psla_jax.data.datafile import Datafile


def cut(data: Datafile, seconds: float) -> Datafile:
    """Returns a datafile whose clips are the successive segments of those of `data`, with the labels of their clips.

    A rest of at least half a segment is a segment too, and a shorter one is left out. Clips that are no longer than a
    segment and a half, or cannot be read, stay whole. Durations are looked up in the headers of the files.

    Args:
        data: the clips.
        seconds: duration of a segment; 0 returns the datafile as it is.
    """
    if not seconds:
        return data
    clips = range(len(data))
    durations = in_threads(lambda clip: _duration(data, clip), clips, "Looking up durations", progress=False)
    times = [_segments(*data.time(clip), durations[clip], seconds) for clip in clips]
    counts = np.array([len(each) for each in times])
    sizes = np.repeat(np.diff(data.path_offsets), counts)
    origins = np.repeat(clips, counts)
    paths = b"".join(data.paths[slice(*data.path_offsets[clip : clip + 2])].tobytes() * counts[clip] for clip in clips)
    return replace(
        data,
        paths=np.frombuffer(paths, np.uint8),
        path_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        label_indices=np.concatenate([data.labels(clip) for clip in origins.tolist()]).astype(np.int32),
        label_offsets=np.concatenate([[0], np.cumsum(np.diff(data.label_offsets)[origins])]).astype(np.int64),
        times=np.concatenate(times),
        mapped="",
    )


def _duration(data: Datafile, clip: int) -> float:
    try:
        return duration(data.audio(clip))
    except AudioError:
        return 0.0


def _segments(start: float, end: float, length: float, seconds: float) -> np.ndarray:
    """Returns the times of the segments of a clip, ``(segments, 2)``; the last one may end with the clip."""
    count = math.floor(length / seconds + 0.5)
    if count < 2:
        return np.array([[start, end]])
    # Rounded, so that names are short: 0.30000000000000004.
    bounds = np.round(start + seconds * np.arange(count + 1), 6)
    times = np.stack([bounds[:-1], bounds[1:]], axis=1)
    if bounds[-1] > start + length:
        times[-1, 1] = end
    return times
