"""AudioSet's segment lists (video id, start, end, classes) as columns: two million clips take 0.4 GB."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from psla_jax.runtime.streams import regular_file
from psla_jax.vocabulary.vocabulary import Vocabulary

URL = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/"
"""Location of ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv`` and ``eval_segments.csv``."""
ID_LENGTH = 11
"""Number of characters of a YouTube id: letters, digits, ``-`` and ``_``."""


class AudioSetError(ValueError):
    """Segment lists or audio that cannot be used; the message names the file and the line."""


@dataclass(eq=False)
class SegmentTable:
    """The clips of one or more segment lists, one row per clip, in the order in which the lists were read."""

    lists: dict[str, range] = field(default_factory=dict)
    """Rows of each list, by its file name without ``_segments.csv``."""
    ids: list[str] = field(default_factory=list)
    """YouTube id of each clip."""
    row_of_id: dict[str, int] = field(default_factory=dict)
    """First row of each id."""
    repeats: dict[int, int] = field(default_factory=dict)
    """For each row whose id is already in an earlier list: the row in that list."""
    starts: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))
    """Start and end of each clip in its video, in seconds."""
    labels: array[int] = field(default_factory=lambda: array("i"))
    """Class indices of all clips, concatenated."""
    label_offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    """``(rows + 1,)``: start of each clip's labels."""

    def read(self, path: str, vocabulary: Vocabulary) -> None:
        """Appends a segment list: ``YTID, start_seconds, end_seconds, "mid,mid"``, comments with ``#``.

        Raises:
            AudioSetError: the file is missing or lists no clip, a line is malformed or has a mid that is not in the
                vocabulary, or an id occurs twice in the list.
        """
        name = os.path.basename(path).removesuffix(".csv").removesuffix("_segments")
        if name in self.lists:
            raise AudioSetError(f"two segment lists are named {name}, the second is {path}: pass each list once.")
        first = len(self.ids)
        for line, cells in _lines(path):
            self._append(cells, line, path, vocabulary, first)
        if len(self.ids) == first:
            raise AudioSetError(f"{path} lists no clip: download it again from {URL}.")
        self.lists[name] = range(first, len(self.ids))

    def _append(self, cells: list[str], line: int, path: str, vocabulary: Vocabulary, first: int) -> None:
        try:
            clip_id, start, end, mids = cells
            self.starts.append(float(start))
            self.ends.append(float(end))
            if len(clip_id) != ID_LENGTH or not self.starts[-1] < self.ends[-1]:
                raise ValueError
        except ValueError:
            raise _malformed(path, line, ",".join(cells)) from None
        try:
            self.labels.extend([vocabulary.indices[mid] for mid in mids.split(",")])
        except KeyError as error:
            raise AudioSetError(
                f"line {line} of {path} has the mid {error.args[0]!r}, which is not among the {len(vocabulary)} "
                "classes: correct the line, or pass the class list it belongs to with --labels."
            ) from None
        self.label_offsets.append(len(self.labels))
        earlier = self.row_of_id.setdefault(clip_id, len(self.ids))
        if earlier != len(self.ids):
            if earlier >= first:
                raise AudioSetError(f"line {line} of {path} repeats the clip {clip_id}: keep one of the two lines.")
            self.repeats[len(self.ids)] = earlier
        self.ids.append(clip_id)

    def classes(self, row: int) -> array[int]:
        """Returns the class indices of a clip."""
        return self.labels[self.label_offsets[row] : self.label_offsets[row + 1]]

    def class_counts(self, selected: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the clips per class, int64 ``(num_classes,)``, of the rows where `selected`, bool, is true."""
        offsets: np.ndarray = np.frombuffer(self.label_offsets, np.int64)
        label_selected = np.repeat(selected, np.diff(offsets))
        return np.bincount(np.frombuffer(self.labels, np.int32)[label_selected], minlength=num_classes)


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of each line that lists a clip."""
    number = 0
    try:
        with regular_file(path) as name, open(name, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for cells in reader:
                if reader.line_num != number + 1:  # An unclosed quote makes the reader join the following lines.
                    raise _malformed(path, number + 1, ",".join(cells).splitlines()[0])
                number += 1
                if cells and cells[0][:1] != "#" and cells[0] != "YTID":
                    yield number, cells
    except OSError as error:
        problem = f"the segment list {path} cannot be read ({error.strerror})"
        raise AudioSetError(f"{problem}: check the path, or download it from {URL}.") from error
    except UnicodeDecodeError as error:
        raise AudioSetError(f"the segment list {path} is not UTF-8 text: download it from {URL}.") from error
    except csv.Error as error:
        problem = f"line {number + 1} of {path} has a misplaced quote ({error})"
        raise AudioSetError(f"{problem}: correct the line, or download the list again from {URL}.") from error


def _malformed(path: str, line: int, text: str) -> AudioSetError:
    return AudioSetError(
        f'line {line} of {path} is {text!r:.120}, not YTID, start_seconds, end_seconds, "mid,mid": correct the line, '
        f"or download the list again from {URL}."
    )
