"""Matching of the clips of two lists by path, file name or AudioSet id.

Copies of a data set differ in their directories and file formats, and those of AudioSet in the names of their files:
``Y--PJHxphWEs.wav``, ``--PJHxphWEs_30000.flac``, ``--PJHxphWEs_30.000_40.000.mp3`` and ``--PJHxphWEs-30`` are one clip.
Segments of recordings (:mod:`psla_jax.audio.segments`) must also have the same times.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from psla_jax.audio.segments import split_fragment

Value = TypeVar("Value")
# Times and sound names contain dots too, so only the extensions of audio files are removed.
_EXTENSION = re.compile(
    r"\.(wav|flac|mp3|ogg|oga|opus|m4a|mp4|aac|aif|aiff|aifc|au|caf|webm|mkv|wma|w64|npy|npz)$", re.IGNORECASE
)
_AUDIOSET = re.compile(r"Y?([A-Za-z0-9_-]{11})(?:[_-](\d+(?:\.\d+)?))?(?:[_-]\d+(?:\.\d+)?)?")
MISSING, AMBIGUOUS = -1, -2
"""Values of :attr:`Matching.positions` for clips without a match and with several possible matches."""


class ClipIdError(ValueError):
    """Several clips with the same path."""


@dataclass(frozen=True, slots=True)
class AudioSetId:
    """The AudioSet id of a clip: the YouTube id of the video and the start of the clip in it."""

    video: str
    start: float | None
    """Start as written in the file name, in seconds or milliseconds; None if the name has none."""
    fragment: str = ""
    """Times of a segment of the clip, such as ``#t=2.5,4``; empty for the whole clip."""

    def compatible_with(self, other: AudioSetId) -> bool:
        """Returns whether both can be the same clip: a factor of 1000 between starts is seconds versus milliseconds."""
        a, b = self.start, other.start
        same = (self.video, self.fragment) == (other.video, other.fragment)
        return same and (a is None or b is None or a in (b, 1000 * b) or b == 1000 * a)


def file_name(path: str) -> str:
    """Returns the name of a file without directories and audio extension, and with the times of a segment."""
    file, fragment = split_fragment(path)
    return _EXTENSION.sub("", os.path.basename(file)) + fragment


def audioset_id(path: str) -> AudioSetId | None:
    """Parses an AudioSet file name: the 11 characters of the video, optionally after a Y and before one or two times.

    Returns None for other names.
    """
    name, fragment = split_fragment(file_name(path))
    parts = _AUDIOSET.fullmatch(name)
    return AudioSetId(parts[1], float(parts[2]) if parts[2] else None, fragment) if parts else None


def require_distinct(paths: Iterable[str], source: str) -> None:
    """Raises ClipIdError if two clips of the file `source` have the same path."""
    seen: dict[str, int] = {}
    for number, path in enumerate(map(os.path.normpath, paths)):
        first = seen.setdefault(path, number)
        if first != number:
            raise ClipIdError(f"clips {first} and {number} of {source} are both {path}: keep one of them.")


@dataclass(frozen=True, eq=False)
class Matching:
    """Result of :func:`match`, with the number of queries matched by path, file name and AudioSet id."""

    positions: np.ndarray
    """int64 ``(queries,)``: position of each query among the candidates; :data:`MISSING` or :data:`AMBIGUOUS`."""
    by_path: int
    by_name: int
    by_id: int

    @property
    def num_matched(self) -> int:
        """Number of queries with a match."""
        return self.by_path + self.by_name + self.by_id

    def summary(self) -> str:
        """Returns the number of matches of each type as text, such as ``9 by path, 2 by file name``."""
        counts = {"path": self.by_path, "file name": self.by_name, "AudioSet id": self.by_id}
        return ", ".join(f"{count:,} by {criterion}" for criterion, count in counts.items() if count)

    def ambiguous(self) -> np.ndarray:
        """Returns the indices of the queries that share their name or id with other clips."""
        return np.flatnonzero(self.positions == AMBIGUOUS)

    def missing(self) -> np.ndarray:
        """Returns the indices of the queries that are not among the candidates."""
        return np.flatnonzero(self.positions == MISSING)


def match(queries: Sequence[str], candidates: Sequence[str]) -> Matching:
    """Matches clips by path, then by folder and file name, by file name, and by AudioSet id.

    The paths on each side must be distinct. A name or id matches only if it is unique on both sides.
    """
    positions = np.full(len(queries), MISSING, np.int64)

    def folder_and_name(path: str) -> str:
        return os.path.join(os.path.basename(os.path.dirname(path)), file_name(path))

    by_path = _match_unique(positions, queries, candidates, os.path.normpath)
    by_name = sum(_match_unique(positions, queries, candidates, key) for key in (folder_and_name, file_name))
    return Matching(positions, by_path, by_name, _match_audioset_ids(positions, queries, candidates))


def _match_unique(
    positions: np.ndarray, queries: Sequence[str], candidates: Sequence[str], key: Callable[[str], str]
) -> int:
    """Fills in the positions of unmatched queries whose key is unique on both sides; returns their number."""
    if np.all(positions >= 0):
        return 0
    candidates_by_key = _group((key(path), i) for i, path in enumerate(candidates))
    count = 0
    for value, clips in _group((key(path), i) for i, path in enumerate(queries)).items():
        unmatched = [clip for clip in clips if positions[clip] < 0]
        if not unmatched or value not in candidates_by_key:
            continue
        unique = len(clips) == len(candidates_by_key[value]) == 1
        positions[unmatched] = candidates_by_key[value][0] if unique else AMBIGUOUS
        count += unique
    return count


def _group(pairs: Iterable[tuple[str, Value]]) -> dict[str, list[Value]]:
    """Returns the values of each key."""
    groups: dict[str, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _match_audioset_ids(positions: np.ndarray, queries: Sequence[str], candidates: Sequence[str]) -> int:
    """Fills in the positions of missing queries whose AudioSet id has exactly one match; returns their number."""
    if not np.any(positions == MISSING):
        return 0
    candidates_by_video = _group_by_video(candidates)
    count = 0
    for video, clips in _group_by_video(queries).items():
        for clip, query in clips:
            if positions[clip] != MISSING:
                continue
            matches = [(i, other) for i, other in candidates_by_video.get(video, ()) if query.compatible_with(other)]
            rivals = sum(rival.compatible_with(other) for _, rival in clips for _, other in matches)
            if len(matches) == rivals == 1:
                positions[clip] = matches[0][0]
                count += 1
            elif matches:
                positions[clip] = AMBIGUOUS
    return count


def _group_by_video(paths: Sequence[str]) -> dict[str, list[tuple[int, AudioSetId]]]:
    return _group((clip.video, (i, clip)) for i, path in enumerate(paths) if (clip := audioset_id(path)))
