"""AudioSet's segment lists: which ten seconds of which video have which classes, two million of them in 0.4 GB."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from psla_jax.ontology import Vocabulary

URL = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/"
"""Where ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv`` and ``eval_segments.csv`` are."""
ID_LENGTH = 11
"""Characters of a YouTube id: letters, digits, ``-`` and ``_``."""
_SUFFIX = "_segments"


class AudioSetError(ValueError):
    """Segment lists or audio that cannot be used; the message names the file and the line."""


@dataclass(eq=False)
class Clips:
    """The clips of all segment lists, one list after the other: a row each, in columns."""

    sets: dict[str, range] = field(default_factory=dict)
    """The rows of each list, by its name without ``_segments.csv``."""
    ids: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    """The first row of every id."""
    repeats: dict[int, int] = field(default_factory=dict)
    """Rows whose id stands in an earlier list too, with the row there."""
    starts: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    """The class indices of all clips."""
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    """``(rows + 1,)``: where the labels of each clip start."""

    def read(self, path: str, vocabulary: Vocabulary) -> None:
        """Appends a segment list: ``YTID, start_seconds, end_seconds, "mid,mid"``, comments with ``#``.

        Raises:
            AudioSetError: the file is missing, a line is broken or has a mid that the vocabulary lacks, an id stands in
                it twice, or it has no clip.
        """
        name = os.path.basename(path).removesuffix(".csv").removesuffix("_segments")
        if name in self.sets:
            raise AudioSetError(f"two segment lists are named {name}, the second is {path}: name each list once.")
        first = len(self.ids)
        for line, row in _lines(path):
            self._add(row, line, path, vocabulary, first)
        if len(self.ids) == first:
            raise AudioSetError(f"{path} lists no clip: download it again from {URL}.")
        self.sets[name] = range(first, len(self.ids))

    def _add(self, row: list[str], line: int, path: str, vocabulary: Vocabulary, first: int) -> None:
        try:
            clip, start, end, mids = row
            self.starts.append(float(start))
            self.ends.append(float(end))
        except ValueError:
            raise _broken(path, line, ",".join(row)) from None
        if len(clip) != ID_LENGTH or not self.starts[-1] < self.ends[-1]:
            raise _broken(path, line, ",".join(row))
        try:
            self.labels.extend([vocabulary.indices[mid] for mid in mids.split(",")])
        except KeyError as error:
            raise AudioSetError(
                f"line {line} of {path} has the mid {error.args[0]!r}, which is not among the {len(vocabulary)} "
                "classes: correct the line, or name the class list it belongs to with --labels."
            ) from None
        self.offsets.append(len(self.labels))
        before = self.rows.setdefault(clip, len(self.ids))
        if before != len(self.ids):
            if before >= first:
                raise AudioSetError(f"line {line} of {path} lists the clip {clip} again: keep one of the two lines.")
            self.repeats[len(self.ids)] = before
        self.ids.append(clip)

    def classes(self, row: int) -> array[int]:
        """The class indices of a clip."""
        return self.labels[self.offsets[row] : self.offsets[row + 1]]

    def counts(self, chosen: np.ndarray, num_classes: int) -> np.ndarray:
        """How many clips have each class: int64 ``(classes,)``, of the rows that `chosen` ``(rows,)`` is true for."""
        offsets: np.ndarray = np.frombuffer(self.offsets, np.int64)
        of_labels = np.repeat(chosen, np.diff(offsets))
        return np.bincount(np.frombuffer(self.labels, np.int32)[of_labels], minlength=num_classes)


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that list a clip, with their numbers."""
    before = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for row in reader:
                if reader.line_num != before + 1:  # A quote that is not closed swallows the lines that follow.
                    raise _broken(path, before + 1, ",".join(row).splitlines()[0])
                before += 1
                if row and row[0][:1] != "#" and row[0] != "YTID":
                    yield before, row
    except OSError as error:
        raise AudioSetError(
            f"the segment list {path} cannot be read ({error.strerror}): check the path, or download it from {URL}."
        ) from error
    except UnicodeDecodeError as error:
        raise AudioSetError(f"the segment list {path} is no text in UTF-8: download it from {URL}.") from error
    except csv.Error as error:
        raise AudioSetError(
            f"line {before + 1} of {path} has a quote out of place ({error}): correct the line, or download the list "
            f"again from {URL}."
        ) from error


def _broken(path: str, line: int, what: str) -> AudioSetError:
    return AudioSetError(
        f'line {line} of {path} is {what!r:.120}, not YTID, start_seconds, end_seconds, "mid,mid": correct the line, '
        f"or download the list again from {URL}."
    )
