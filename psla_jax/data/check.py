"""What is wrong with a data set, found out before a run starts."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Literal

from psla_jax import audio, shards
from psla_jax.data.datafile import Datafile

_LOOK_UPS = 1024
"""Paths that a thread looks up at a time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A clip that cannot be used."""

    index: int
    """Which clip of the datafile."""
    path: str
    """Its audio file."""
    reason: str
    """What is wrong with it and what to do; goes on where the path ends, as in ``clip.wav is missing: ...``."""


def preflight(
    datafile: Datafile,
    *,
    limit: int,
    channel: Literal["mean", "first"],
    name: str,
    workers: int | None = None,
    progress: bool = True,
) -> list[Problem]:
    """Looks up the audio files of all clips, then reads some of them from end to end.

    Args:
        datafile: the clips.
        limit: how many are read, evenly spaced over the datafile; 0 for none.
        channel: how several channels become one, see :func:`psla_jax.audio.read`.
        name: what the progress bar calls this data set, as ``training``.
        workers: threads; None or 0 for a few more than there are cores.
        progress: whether to show progress bars on stderr; they go away at the end.

    Returns:
        What cannot be used, by index, each clip at most once.
    """
    blocks = [range(start, min(start + _LOOK_UPS, len(datafile))) for start in range(0, len(datafile), _LOOK_UPS)]
    looked_up = audio.in_threads(
        lambda block: [problem for i in block if (problem := look_up(datafile, i))],
        blocks,
        f"Looking up {name} clips",
        workers=workers,
        progress=progress,
    )
    problems = {problem.index: problem for found in looked_up for problem in found}
    count = max(0, min(limit, len(datafile)))
    chosen = [i for i in (k * len(datafile) // count for k in range(count)) if i not in problems]
    read = audio.in_threads(
        lambda i: _read(datafile, i, channel), chosen, f"Reading {name} clips", workers=workers, progress=progress
    )
    problems.update((problem.index, problem) for problem in read if problem)
    return [problems[i] for i in sorted(problems)]


def look_up(datafile: Datafile, index: int) -> Problem | None:
    """Whether a clip's file, or its shard, is there; what it holds is not read."""
    path = datafile.wav(index)
    try:
        found = os.stat(shards.file_of(path))
    except (OSError, ValueError):
        return Problem(index, path, "is missing: correct the path, or remove the clip from the datafile.")
    if not stat.S_ISREG(found.st_mode):
        return Problem(index, path, "is not a file: correct the path, or remove the clip from the datafile.")
    if found.st_size == 0:
        return Problem(index, path, "is an empty file: download it again, or remove the clip from the datafile.")
    return None


def _read(datafile: Datafile, index: int, channel: Literal["mean", "first"]) -> Problem | None:
    path = datafile.wav(index)
    try:
        audio.read(path, channel=channel, seconds=audio.LONGEST_CLIP)
    except audio.AudioError as error:
        return Problem(index, path, error.reason)
    return None
