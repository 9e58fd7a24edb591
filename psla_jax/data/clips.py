"""Which clip of one list is which of another: by path, by file name, or by what AudioSet calls it.

Copies of a data set differ in their folders, in the kind of audio file, and for AudioSet in the names themselves:
``Y--PJHxphWEs.wav``, ``--PJHxphWEs_30000.flac``, ``--PJHxphWEs_30.000_40.000.mp3`` and ``--PJHxphWEs-30`` are one clip.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Times and names of sounds have dots too, so that an extension has to be a known one.
_EXTENSION = re.compile(
    r"\.(wav|flac|mp3|ogg|oga|opus|m4a|mp4|aac|aif|aiff|aifc|au|caf|webm|mkv|wma|w64|npy|npz)$", re.IGNORECASE
)
_AUDIOSET = re.compile(r"Y?([A-Za-z0-9_-]{11})(?:[_-](\d+(?:\.\d+)?))?(?:[_-]\d+(?:\.\d+)?)?")
NO, AMBIGUOUS = -1, -2
"""In the place of a position: there is no such clip; there are several."""


class ClipIdError(ValueError):
    """Clips that cannot be told apart."""


@dataclass(frozen=True, slots=True)
class AudioSetId:
    """What AudioSet knows a clip by: the video, and where in it the clip starts."""

    video: str
    start: float | None
    """As it is written, in seconds or in milliseconds; None where the name does not say."""

    def may_be(self, other: AudioSetId) -> bool:
        """Whether both can be the same clip. Numbers that differ by 1000 are one time in seconds and milliseconds."""
        if self.video != other.video:
            return False
        if self.start is None or other.start is None:
            return True
        return self.start in (other.start, 1000 * other.start) or other.start == 1000 * self.start


def file_name(path: str) -> str:
    """The name of a file without its folders and its extension."""
    return _EXTENSION.sub("", os.path.basename(path))


def _folder_and_name(path: str) -> str:
    return os.path.join(os.path.basename(os.path.dirname(path)), file_name(path))


def audioset_id(path: str) -> AudioSetId | None:
    """The id that a file name of AudioSet carries: 11 characters, with or without a Y before and times behind them."""
    found = _AUDIOSET.fullmatch(file_name(path))
    return AudioSetId(found[1], float(found[2]) if found[2] else None) if found else None


def require_distinct(paths: Iterable[str], where: str) -> None:
    """Raises ClipIdError if two clips of the file `where` have one path."""
    seen: dict[str, int] = {}
    for number, path in enumerate(map(os.path.normpath, paths)):
        first = seen.setdefault(path, number)
        if first != number:
            raise ClipIdError(f"clips {first} and {number} of {where} are both {path}: keep one of them.")


@dataclass(frozen=True, eq=False)
class Matching:
    """Where the wanted clips are among those offered.

    Attributes:
        places: ``(wanted,)`` int64, the position among the offered clips; :data:`NO` or :data:`AMBIGUOUS`.
        by_path, by_name, by_id: how many were found by their path, file name and AudioSet id.
    """

    places: np.ndarray
    by_path: int
    by_name: int
    by_id: int

    def found(self) -> int:
        """How many clips have a place."""
        return self.by_path + self.by_name + self.by_id

    def ways(self) -> str:
        """How they were found, for the screen: ``9 by path, 2 by file name``."""
        counts = {"path": self.by_path, "file name": self.by_name, "AudioSet id": self.by_id}
        return ", ".join(f"{count:,} by {way}" for way, count in counts.items() if count)

    def ambiguous(self) -> np.ndarray:
        """The wanted clips that share a name or id with other clips, so that it says nothing."""
        return np.flatnonzero(self.places == AMBIGUOUS)

    def missing(self) -> np.ndarray:
        """The wanted clips that are not among those offered."""
        return np.flatnonzero(self.places == NO)


def match(wanted: Sequence[str], offered: Sequence[str]) -> Matching:
    """Finds clips by their path; then by folder and file name, file name or AudioSet id, where these are unique.

    A name is unique when one clip on either side has it.

    Args:
        wanted: paths, each once.
        offered: paths, each once.
    """
    places = np.full(len(wanted), NO, np.int64)
    by_path = _unique(places, wanted, offered, os.path.normpath)
    by_name = _unique(places, wanted, offered, _folder_and_name) + _unique(places, wanted, offered, file_name)
    return Matching(places, by_path, by_name, _by_audioset_id(places, wanted, offered))


def _unique(places: np.ndarray, wanted: Sequence[str], offered: Sequence[str], name: Callable[[str], str]) -> int:
    """Fills in the places of clips whose name is unique on both sides. Returns how many."""
    if np.all(places >= 0):
        return 0
    there = _positions(map(name, offered))
    count = 0
    for key, clips in _positions(map(name, wanted)).items():
        left = [clip for clip in clips if places[clip] < 0]
        if not left or key not in there:
            continue
        unique = len(clips) == len(there[key]) == 1
        places[left] = there[key][0] if unique else AMBIGUOUS
        count += unique
    return count


def _positions(keys: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return found


def _by_audioset_id(places: np.ndarray, wanted: Sequence[str], offered: Sequence[str]) -> int:
    """Fills in the places of clips by their AudioSet id, where one clip alone can be meant. Returns how many."""
    if not np.any(places == NO):
        return 0
    there, asked = _videos(offered), _videos(wanted)
    count = 0
    for video, clips in asked.items():
        for clip, known in clips:
            if places[clip] != NO:
                continue
            candidates = [(place, other) for place, other in there.get(video, ()) if known.may_be(other)]
            rivals = sum(rival.may_be(other) for _, rival in clips for _, other in candidates)
            if len(candidates) == rivals == 1:
                places[clip] = candidates[0][0]
                count += 1
            elif candidates:
                places[clip] = AMBIGUOUS
    return count


def _videos(paths: Sequence[str]) -> dict[str, list[tuple[int, AudioSetId]]]:
    found: dict[str, list[tuple[int, AudioSetId]]] = {}
    for position, path in enumerate(paths):
        known = audioset_id(path)
        if known is not None:
            found.setdefault(known.video, []).append((position, known))
    return found
