"""Clips that are segments of recordings: the time columns of tables, and segments with several labels."""

from __future__ import annotations

import math
import re
from collections.abc import Collection as CollectionOf
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from psla_jax.audio import segments
from psla_jax.audio.decode import AudioError, in_threads
from psla_jax.audio.segments import WHOLE
from psla_jax.data.prepare.collection import Clip, Collection, CollectionError, ExcludedClip
from psla_jax.data.prepare.walk import printable_path
from psla_jax.data.validate.findings import format_count

_KINDS = {
    **dict.fromkeys(("start", "onset", "begin"), "start"),
    **dict.fromkeys(("end", "offset", "stop"), "end"),
    **dict.fromkeys(("duration", "delta"), "duration"),
}
_MILLISECONDS = frozenset({"ms", "msec", "millisecond", "milliseconds"})
_UNITS = frozenset({"s", "sec", "secs", "second", "seconds"}) | _MILLISECONDS
_OTHER_UNITS = frozenset({"sample", "samples", "frame", "frames"})
_OWNERS = frozenset({"segment", "event", "clip", "call", "annotation", "time", "t"})
"""Words before or after the kind of a time, as in ``event_onset``; a column with one is only used if it has numbers."""
_PAIRS = (
    *(("start", "end"), ("start", "stop"), ("begin", "end"), ("begin", "stop"), ("onset", "offset"), ("from", "to")),
    *(("t0", "t1"), ("t1", "t2"), ("tmin", "tmax"), ("first", "last")),
)
"""Words of column names that probably mean times."""
_TIME_PAIRS = (("min", "max"), ("0", "1"), ("1", "2"), ("lower", "upper"))
"""Words that probably mean times beside ``t`` or ``time``."""
_RAVEN_OFFSET = "file_offset_s"
"""Column of Raven with the start in the file, where ``Begin Time (s)`` counts from the first of several files."""
_SLICE_COLUMN = "slice_file_name"
"""Column of UrbanSound8K, whose times are those in the recordings that its files were cut from."""
NONE = "none"
"""Name of the start column that switches segments off."""
_DECIMALS = 6
"""Decimals of a second that are kept, so that sums and products of times that are equal stay equal."""


@dataclass(frozen=True)
class TimeColumns:
    """The columns of a table with the times of segments; names are as in the header."""

    start: str
    end: str
    """Empty if the table has durations instead."""
    duration: str = ""
    offset: str = ""
    """Column with the start in the file, if `start` counts from an earlier file."""

    @property
    def description(self) -> str:
        """The columns in words."""
        return f"{self.offset or self.start} and {self.end or self.duration}"

    def time(self, row: Mapping[str, str]) -> tuple[float, float]:
        """Returns start and end in seconds of a row, given by its cells by column; no times mean a whole recording.

        Raises:
            ValueError: a cell is not a time, or only one of the two is filled in; the message has its column.
        """
        columns = [name for name in (self.offset, self.start, self.end, self.duration) if name]
        values = {name: _seconds(name, row[name]) for name in columns}
        start, length = values[self.start], values.get(self.duration, math.nan)
        end = values[self.end] if self.end else start + length
        if self.offset:
            start, end = values[self.offset], values[self.offset] + end - start
        if all(map(math.isnan, values.values())):
            return WHOLE
        if math.isnan(start) or math.isnan(end):
            empty = next(name for name in columns if math.isnan(values[name]))
            raise ValueError(f"no {empty} but other times: fill in both, or none for the whole recording")
        return round(start, _DECIMALS), round(end, _DECIMALS)


def find_columns(
    header: Sequence[str], start: str = "", end: str = "", numeric: CollectionOf[str] = ()
) -> TimeColumns | None:
    """Returns the time columns of a table: those requested, or else the first ones with common names.

    None if the table has no pair of them, or if `start` is :data:`NONE`. `numeric` are the columns that have only
    numbers, as :func:`numeric_columns` returns them.
    """
    if start == NONE or (not start and _SLICE_COLUMN in map(_normalised, header)):
        return None
    families: dict[frozenset[str], dict[str, str]] = {frozenset(): {}}
    for name in header:
        kind, owner = _kind(name)
        if not owner or name in numeric:
            families.setdefault(owner, {}).setdefault(kind, name)
    complete = (names for names in families.values() if "start" in names and {"end", "duration"} & set(names))
    found = families[frozenset()] if start or end else next(complete, {})
    start, end = start or found.get("start", ""), end or found.get("end", "")
    duration = "" if end else found.get("duration", "")
    if not start or not (end or duration):
        return None
    raven = next((name for name in header if _normalised(name) == _RAVEN_OFFSET), "")
    return TimeColumns(start, end, duration, raven if found.get("start") == start else "")


def raven_notes(times: TimeColumns, files: Iterable[str]) -> Iterator[str]:
    """Yields a note on times of Raven that may count from the first of the `files` that a table names."""
    if _normalised(times.start) == "begin_time_s" and not times.offset and len(set(files)) > 1:
        yield (
            f"there is no column File Offset (s), so {times.start} is taken as the time in each file: if Raven had the "
            "files open as one sequence, export the table with that column"
        )


def numeric_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the columns that have numbers or times in seconds, and besides these only empty cells."""

    def is_numeric(cells: Sequence[str]) -> bool:
        try:
            return not all(math.isnan(_seconds("", cell)) for cell in cells)
        except ValueError:
            return False

    return [name for name, cells in zip(header, zip(*rows)) if is_numeric(cells)]


def unused_notes(header: Sequence[str], numeric: CollectionOf[str]) -> Iterator[str]:
    """Yields notes on columns of a table without time columns that may have times.

    These are a column of starts without one of ends, and the reverse, and pairs of `numeric` columns.
    """
    if _SLICE_COLUMN in map(_normalised, header):
        return
    kinds = {kind: name for name in reversed(header) for kind, owner in [_kind(name)] if not owner or name in numeric}
    pair = next(_likely_pairs(numeric), None)
    if pair and any(_OTHER_UNITS & set(_normalised(name).split("_")) for name in pair):
        yield (
            f"the columns {pair[0]} and {pair[1]} are not used, as times are read in seconds: add columns of starts "
            "and ends in seconds"
        )
    elif pair:
        yield (
            f"the columns {pair[0]} and {pair[1]} are not used: name them with --start-column and --end-column if they "
            "are times in seconds"
        )
    for kind in ("start", "end"):
        if kind in kinds and not (pair and kinds[kind] in pair):
            yield f"the column {kinds[kind]} is not used, as there is none of the other time: recordings are not cut"


def _likely_pairs(numeric: CollectionOf[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of columns with names that differ in one word, such as ``t_min`` and ``t_max``."""
    names = {tuple(_normalised(name).split("_")): name for name in numeric}
    for words, name in names.items():
        pairs = (*_PAIRS, *(_TIME_PAIRS if {"t", "time"} & set(words) else ()))
        for first, second in pairs:
            other = tuple(second if word == first else word for word in words)
            if other != words and other in names:
                yield name, names[other]


def _kind(name: str) -> tuple[str, frozenset[str]]:
    """Returns ``start``, ``end`` or ``duration`` (or nothing) for a column, and the words on what has that time."""
    words = [next((kind for kind in _KINDS if word == f"{kind}time"), word) for word in _normalised(name).split("_")]
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    owner = {word for i, word in enumerate(words) if word not in _KINDS and not (i and word in {"time", *_UNITS})}
    return kinds[0] if len(kinds) == 1 and owner <= _OWNERS else "", frozenset(owner)


def _normalised(name: str) -> str:
    """Returns the words of a name in lower case, joined by underscores."""
    separate = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return re.sub(r"[^a-z0-9]+", "_", separate).strip("_")


def _seconds(column: str, cell: str) -> float:
    """Returns a time in seconds, also of ``1:02:03.5`` and with a decimal comma; NaN for an empty cell."""
    if cell.lower() in ("", "nan"):
        return math.nan
    seconds = 0.0
    try:
        for part in cell.replace(",", ".").split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError:
        seconds = math.inf
    if math.isinf(seconds):
        raise ValueError(f"the {column} {cell!r}: give seconds, such as 12.5")
    return seconds * (1e-3 if _MILLISECONDS & set(_normalised(column).split("_")) else 1.0)


# ---- clips


Entry = tuple[int, Clip]
"""A line of a table, and the clip in it."""


def merge(entries: Iterable[Entry], path: str) -> tuple[list[Entry], list[ExcludedClip]]:
    """Joins the labels of lines with the same recording and times; returns clips, and lines without a valid segment.

    Raises:
        CollectionError: such lines of the table `path` have different parts of a split.
    """
    merged: dict[tuple[str, float, float], Entry] = {}
    excluded = []
    for line, clip in entries:
        if not 0 <= clip.start < clip.end:
            times = f"starts at {clip.start:g} s and ends at {clip.end:g} s in line {line} of {path}"
            excluded.append(
                ExcludedClip(clip.path, f"{times}: correct the times, or remove the line.", is_segment=True)
            )
            continue
        first_line, first = merged.setdefault((clip.path, clip.start, clip.end), (line, clip))
        if first.part != clip.part:
            raise CollectionError(
                f"lines {first_line} and {line} of {path} have the same segment of {clip.path} in different parts of "
                "the split: correct one."
            )
        labels = tuple(dict.fromkeys((*first.labels, *clip.labels)))
        merged[clip.path, clip.start, clip.end] = first_line, replace(first, labels=labels)
    return list(merged.values()), excluded


def with_labels(entries: Sequence[Entry]) -> tuple[list[Clip], list[ExcludedClip]]:
    """Returns the clips that have labels, and the others."""
    reason = "has no label in line {}: add one, or remove the line."
    unlabelled = [
        ExcludedClip(f"{clip.audio}", reason.format(line), clip.is_segment) for line, clip in entries if not clip.labels
    ]
    return [clip for _, clip in entries if clip.labels], unlabelled


def describe(collection: Collection, cut_by: str, progress: bool) -> Collection:
    """Returns a collection of segments with their number in its layout, and with notes on them.

    Whole recordings take their place if their times are those in longer recordings.
    """
    clips, notes = _without_times_of_originals(collection.clips, progress)
    cut = [clip for clip in clips if clip.is_segment]
    layout = collection.layout
    if cut:
        recordings = format_count(len({clip.path for clip in cut}), "recording")
        layout += f"; {format_count(len(cut), 'segment')} of {recordings} cut by {cut_by}"
    notes = [*collection.notes, *notes, *_overlap_notes(cut)]
    return replace(collection, layout=layout, clips=tuple(clips), notes=tuple(notes))


def _without_times_of_originals(clips: Sequence[Clip], progress: bool) -> tuple[list[Clip], list[str]]:
    """Returns whole recordings, and a note, if the times of most segments are not within their recordings.

    Such a table has the times in longer recordings that the files were cut from, as AudioSet's lists. This is only
    assumed if every recording has one segment.
    """
    cut = [clip for clip in clips if clip.is_segment]
    if len({clip.path for clip in cut}) < len(cut):
        return list(clips), []

    def is_outside(clip: Clip) -> bool:
        try:
            segments.duration(clip.path)
        except AudioError:
            return False  # unreadable for another reason
        try:
            return segments.duration(clip.audio) <= 0
        except AudioError:
            return True

    outside = in_threads(is_outside, cut, "Measuring recordings", progress=progress)
    if 2 * sum(outside) <= len(cut):
        return list(clips), []
    example = printable_path(f"{cut[outside.index(True)].audio}")
    note = (
        f"the times of {sum(outside):,} of {len(cut):,} segments are not within their recordings, such as {example}: "
        "they are taken for times in longer originals, and whole recordings are labelled"
    )
    return [replace(clip, start=WHOLE[0], end=WHOLE[1]) for clip in clips], [note]


def _overlap_notes(clips: Sequence[Clip]) -> Iterator[str]:
    """Yields a note on segments that overlap with others of the same recording that have other labels."""
    overlapping: list[Clip] = []
    last: Clip | None = None
    for clip in sorted(clips, key=lambda clip: (clip.path, clip.start, clip.end)):
        if last is not None and clip.path == last.path and clip.start < last.end:
            overlapping += [clip] * (set(clip.labels) != set(last.labels))
            last = max(last, clip, key=lambda segment: segment.end)
        else:
            last = clip
    if overlapping:
        yield (
            f"segments that begin before another one with other labels ends: {len(overlapping):,}, such as "
            f"{printable_path(f'{overlapping[0].audio}')}; each is labelled only by the lines with its own times"
        )
