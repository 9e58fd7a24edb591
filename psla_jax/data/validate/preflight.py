"""Unreadable clips of a data set, found before training starts."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from psla_jax.audio import decode, segments, shards
from psla_jax.data.datafile import Datafile

_BLOCK = 1024
"""Number of paths that a thread looks up at a time."""


@dataclass(frozen=True, slots=True)
class ClipProblem:
    """A clip that cannot be read."""

    index: int
    """Index of the clip in the datafile."""
    path: str
    reason: str
    """Reason and remedy, to be appended to the path, such as ``is missing: ...``."""


def find_unreadable_clips(
    datafile: Datafile,
    *,
    limit: int,
    channel: Literal["mean", "first"],
    name: str,
    workers: int | None = None,
    progress: bool = True,
    damaged: list[ClipProblem] | None = None,
    rates: Counter[int] | None = None,
) -> list[ClipProblem]:
    """Looks up the audio files of all clips and returns the unreadable ones in the order of the datafile, each once.

    Args:
        datafile: the clips.
        limit: number of clips to read, evenly spaced over the datafile; 0 for none.
        channel: mixdown of several channels, see :func:`psla_jax.audio.decode.read`.
        name: name of the data set on the progress bars, such as ``training``.
        workers: number of threads; None or 0 for the number of cores plus 4, at most 32.
        progress: whether to show progress bars on stderr.
        damaged: receives the defects of the clips that were read although a part of them is missing.
        rates: receives the sample rates of the clips that were read.
    """
    blocks = [range(start, min(start + _BLOCK, len(datafile))) for start in range(0, len(datafile), _BLOCK)]
    in_threads = functools.partial(decode.in_threads, workers=workers, progress=progress)
    looked_up = in_threads(lambda block: check_files(datafile, block), blocks, f"Looking up {name} clips")
    problems = {problem.index: problem for block in looked_up for problem in block}
    count = max(0, min(limit, len(datafile)))
    chosen = [i for i in (k * len(datafile) // count for k in range(count)) if i not in problems]
    read = in_threads(lambda i: _read(datafile, i, channel), chosen, f"Reading {name} clips")
    problems.update((found.problem.index, found.problem) for found in read if found.problem)
    if damaged is not None:
        damaged += [defect for found in read for defect in found.defects]
    if rates is not None:
        rates.update(found.rate for found in read if not found.problem)
    return [problems[i] for i in sorted(problems)]


def check_files(datafile: Datafile, clips: Iterable[int]) -> list[ClipProblem]:
    """Returns the problems that :func:`check_file` reports for several clips."""
    return [problem for clip in clips if (problem := check_file(datafile, clip))]


def check_file(datafile: Datafile, index: int) -> ClipProblem | None:
    """Reports a clip whose file (or shard) is missing, is not a regular file or is empty, without reading it."""
    path = os.fspath(datafile.audio(index))
    try:
        status = os.stat(shards.storage_path(datafile.wav(index)))
    except (OSError, ValueError):
        return ClipProblem(index, path, _missing_reason(datafile, index))
    if not stat.S_ISREG(status.st_mode):
        return ClipProblem(index, path, "is not a file: correct the path, or remove the clip from the datafile.")
    if status.st_size == 0:
        return ClipProblem(index, path, "is an empty file: download it again, or remove the clip from the datafile.")
    return None


def _missing_reason(datafile: Datafile, index: int) -> str:
    remedy = "correct the path, or remove the clip from the datafile."
    if os.path.isabs(datafile.path(index)):
        return f"is missing: {remedy}"
    return f"is missing: paths in a datafile are relative to its own folder; {remedy}"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Result of reading a clip."""

    problem: ClipProblem | None
    defects: tuple[ClipProblem, ...] = ()
    rate: int = 0
    """Samples per second of the file, the lowest ones if they vary."""


def _read(datafile: Datafile, index: int, channel: Literal["mean", "first"]) -> _Outcome:
    clip, reading = datafile.audio(index), decode.Reading()
    path = os.fspath(clip)
    try:
        segments.read(clip, channel=channel, seconds=decode.MAX_CLIP_SECONDS, reading=reading)
    except decode.AudioError as error:
        return _Outcome(ClipProblem(index, path, error.reason))
    return _Outcome(None, tuple(ClipProblem(index, path, note) for note in reading.notes), reading.rate)
