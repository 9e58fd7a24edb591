"""Datafiles from AudioSet's segment lists and a partial copy of its audio (https://research.google.com/audioset).

Copies of AudioSet are incomplete and differ in their file names. The segment lists therefore define the clips, audio
files are matched by the 11-character YouTube id in their name, and clips without audio are counted and listed.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psla_jax.data import datafile
from psla_jax.data.prepare.audioset_segments import ID_LENGTH, AudioSetError, SegmentTable
from psla_jax.data.prepare.walk import Listing, check_overwrite, printable_path, walk
from psla_jax.runtime.cache import in_cache
from psla_jax.runtime.download import fetch
from psla_jax.runtime.files import atomic_text, removed_on_failure
from psla_jax.runtime.streams import regular_file
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

ONTOLOGY_URL = "https://raw.githubusercontent.com/audioset/ontology/master/ontology.json"
OFFICIAL = "audioset"
"""Name of the official ontology and of the official class list."""
FULL_LISTS, FULL_NAME = ("balanced_train", "unbalanced_train"), "train"
"""Lists that the reference combines into its full training set, and the name of the combined set."""
_TIME = re.compile(r"[_\- ]+(\d+(?:\.\d+)?)")
_TIME_MATCHES, _TIME_ABSENT, _TIME_DIFFERS = 0, 1, 2
"""Whether a file name contains the start time of its clip, no time, or a different time; smaller is preferred."""
_LEAST_COVERED = 5
"""Number of classes with the lowest coverage that are reported."""


@dataclass(eq=False)
class AudioIndex:
    """Assignment of audio files to clips; it does not depend on the order in which the files are listed."""

    segments: SegmentTable
    folders: list[str] = field(default_factory=list)
    names: list[str] = field(init=False)
    """File name of each row; empty for a clip without audio."""
    folder_numbers: np.ndarray = field(init=False)
    """int32 ``(rows,)``: index into `folders`."""
    times: np.ndarray = field(init=False)
    """int8 ``(rows,)``: ``_TIME_MATCHES``, ``_TIME_ABSENT`` or ``_TIME_DIFFERS``."""
    num_files: int = 0
    """Number of audio files listed so far."""
    unsupported: str = ""
    """The first file in an unsupported format; empty if there is none."""
    not_utf8: list[str] = field(default_factory=list)
    """Audio files whose path is not valid UTF-8."""
    not_files: list[str] = field(default_factory=list)
    """Pipes, devices and broken links with the name of an audio file."""
    num_duplicates: int = 0
    """Number of files that were not used because another file belongs to the same clip."""
    duplicate_example: tuple[str, ...] = ()
    """Path used and path not used of the first duplicate, at the time it was listed."""

    def __post_init__(self) -> None:
        self.names = [""] * len(self.segments.ids)
        self.folder_numbers = np.zeros(len(self.segments.ids), np.int32)
        self.times = np.zeros(len(self.segments.ids), np.int8)

    def add(self, listing: Listing) -> None:
        """Assigns the audio files of a folder to their clips."""
        if listing.unsupported and not self.unsupported:
            self.unsupported = printable_path(os.path.join(listing.folder, listing.unsupported[0]))
        self.not_utf8 += [os.path.join(listing.folder, name) for name in listing.not_utf8]
        self.not_files += [os.path.join(listing.folder, name) for name in listing.not_files]
        self.num_files += len(listing.audio)
        number = len(self.folders)
        self.folders.append(listing.folder)
        for name in listing.audio:
            row, suffix = self._find_row(name[: name.rfind(".")])
            if row >= 0:
                self._assign(row, number, name, self._compare_time(row, suffix))

    def _find_row(self, stem: str) -> tuple[int, str]:
        """Returns the row of the clip whose id is in a file name (-1 if there is none), and the text after the id.

        Ids may contain any letter, digit, ``-`` and ``_``, so a name cannot be split at a separator; every substring of
        11 characters is looked up. A match that is not followed by a letter or digit is preferred, because ``Y`` and
        the first 10 characters of an id may be the id of another clip.
        """
        rows, fallback = self.segments.row_of_id, (-1, "")
        for i in range(len(stem) - ID_LENGTH + 1):
            row = rows.get(stem[i : i + ID_LENGTH], -1)
            if row >= 0:
                suffix = stem[i + ID_LENGTH :]
                if not suffix[:1].isalnum():
                    return row, suffix
                fallback = fallback if fallback[0] >= 0 else (row, suffix)
        return fallback

    def _compare_time(self, row: int, suffix: str) -> int:
        """Compares the time in a suffix such as ``_30.000_40.000`` or ``_30000`` (s or ms) with the clip's start."""
        match = _TIME.match(suffix)
        if match is None:
            return _TIME_ABSENT
        start, time = self.segments.starts[row], float(match[1])
        return _TIME_MATCHES if abs(time - start) < 1 or abs(time - 1000 * start) < 1 else _TIME_DIFFERS

    def _assign(self, row: int, number: int, name: str, time: int) -> None:
        """Assigns a file to a clip unless the clip has a better one: by start time, then by path."""
        if self.names[row]:
            self.num_duplicates += 1
            current, candidate = self.path(row), os.path.join(self.folders[number], name)
            better = (time, candidate) < (self.times[row], current)
            if not self.duplicate_example:
                self.duplicate_example = (candidate, current) if better else (current, candidate)
            if not better:
                return
        self.names[row], self.folder_numbers[row], self.times[row] = name, number, time

    def path(self, row: int) -> str:
        """Returns the audio file of a clip that has one; a repeated clip has that of its first row."""
        row = self.segments.repeats.get(row, row)
        return f"{self.folders[self.folder_numbers[row]]}{os.sep}{self.names[row]}"

    def has_audio(self) -> np.ndarray:
        """Returns a bool array ``(rows,)`` that is true for clips with an audio file."""
        available = np.fromiter(map(bool, self.names), bool, len(self.names))
        repeats = self.segments.repeats
        available[list(repeats)] = available[list(repeats.values())]
        return available


@dataclass(frozen=True)
class OutputPaths:
    """Absolute paths of the files that :func:`prepare` writes."""

    datafiles: dict[str, str]
    """Datafile by set name; ``train`` combines the balanced and the unbalanced list."""
    missing: dict[str, str]
    """Clips without audio of each segment list, in the format of a segment list."""
    labels: str
    """Class list."""
    coverage: str
    """CSV with the listed and found clips of every class."""
    ontology: str
    """Copy of the ontology; empty if none was requested."""

    @classmethod
    def in_folder(cls, out: str, table: SegmentTable, ontology: bool) -> OutputPaths:
        names = [*table.lists, *[FULL_NAME] * (set(FULL_LISTS) <= set(table.lists))]
        return cls(
            datafiles={name: os.path.join(out, f"{name}_data.json") for name in names},
            missing={name: os.path.join(out, f"{name}_missing_segments.csv") for name in table.lists},
            labels=os.path.join(out, "class_labels_indices.csv"),
            coverage=os.path.join(out, "coverage.csv"),
            ontology=os.path.join(out, "ontology.json") if ontology else "",
        )

    def all(self) -> list[str]:
        paths = [*self.datafiles.values(), *self.missing.values(), self.labels, self.coverage, self.ontology]
        return [path for path in paths if path]


@dataclass(frozen=True)
class Prepared(OutputPaths):
    """Result of :func:`prepare`."""

    listed: dict[str, int]
    found: dict[str, int]
    """Number of clips in each segment list, and in each datafile."""
    notes: tuple[str, ...]
    """Irregularities of the audio, one sentence each."""

    def report(self) -> str:
        """Returns the written files and the notes as lines for the screen."""
        lines = []
        combined = f"clips, {' and '.join(FULL_LISTS)} combined"
        for name, path in self.datafiles.items():
            found, listed = self.found[name], self.listed.get(name)
            share = f"of {listed:,} clips ({100 * found / listed:.1f}%)" if listed else combined
            lines.append(f"{path}: {found:,} {share}")
        lines.append(f"{self.coverage}: listed and found clips of every class")
        lines += [f"{path}: the clips of {name} without audio" for name, path in self.missing.items()]
        lines.append(f"{self.labels}: the class list" + (f"; {self.ontology}: the ontology" if self.ontology else ""))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def prepare(
    segments: Sequence[str],
    audio: Sequence[str],
    out: str,
    *,
    labels: str = OFFICIAL,
    ontology: str = "",
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Writes a datafile for every segment list with the clips whose audio is available.

    ``eval_segments.csv`` gives ``eval_data.json``, and so on; the balanced and the unbalanced training list together
    also give ``train_data.json``. Clips are in the order of their list. Audio files are not moved or copied.

    Args:
        segments: segment lists as downloaded.
        audio: folders that contain audio files, at any depth, with the clip's id anywhere in the file name.
        out: the folder to write to.
        labels: class list; ``audioset`` for the official one.
        ontology: an ``ontology.json`` to check and to copy into `out`; ``audioset`` for the official one, which is
            downloaded once; empty for none.
        force: whether to replace existing files.
        progress: whether to show progress on stderr.

    Raises:
        AudioSetError, PathError, VocabularyError, OntologyError, DownloadError: a list, a folder or the ontology
            cannot be used, a list has no audio at all, or an output file already exists.
    """
    vocabulary, table = Vocabulary.read(labels), SegmentTable()
    for path in segments:
        table.read(path, vocabulary)
    outputs = OutputPaths.in_folder(os.path.abspath(out), table, bool(ontology))
    check_overwrite(outputs.all(), force=force)
    ontology_text = _read_ontology(ontology, vocabulary) if ontology else ""
    index = AudioIndex(table)
    for listing in walk(audio, progress=progress):
        index.add(listing)
    with removed_on_failure(outputs.all()):
        return _write(outputs, index, vocabulary, ontology_text, audio)


def _read_ontology(path: str, vocabulary: Vocabulary) -> str:
    """Returns the text of an ontology that contains all classes of the vocabulary; ``audioset`` is downloaded once."""
    if path == OFFICIAL and not os.path.exists(path):
        path = str(in_cache(lambda file: fetch(ONTOLOGY_URL, file, check=Ontology.read), "audioset", "ontology.json"))
    with regular_file(path) as name:
        ontology = Ontology.read(name)
        text = Path(name).read_text(encoding="utf-8-sig")
    missing = [mid for mid in vocabulary.mids if mid not in ontology]
    if missing:
        raise AudioSetError(
            f"the ontology {path} lacks {len(missing)} of the {len(vocabulary)} classes, such as {missing[0]}: use the "
            "one that the class list belongs to."
        )
    return text


def _write(
    outputs: OutputPaths, index: AudioIndex, vocabulary: Vocabulary, ontology: str, audio: Sequence[str]
) -> Prepared:
    table, available = index.segments, index.has_audio()
    for name, rows in table.lists.items():
        if not available[rows.start : rows.stop].any():
            raise AudioSetError(_no_audio_message(name, len(rows), index, audio))
    os.makedirs(os.path.dirname(outputs.labels), exist_ok=True)
    vocabulary.write(outputs.labels)
    if outputs.ontology:
        with atomic_text(outputs.ontology) as file:
            file.write(ontology)
    found = {
        name: datafile.write(path, _records(name, index, vocabulary, available))
        for name, path in outputs.datafiles.items()
    }
    for name, path in outputs.missing.items():
        _write_missing(path, name, table, vocabulary, available)
    counts = _class_counts(table, vocabulary, available)
    _write_coverage(outputs.coverage, vocabulary, counts)
    listed = {name: len(rows) for name, rows in table.lists.items()}
    return Prepared(**vars(outputs), listed=listed, found=found, notes=tuple(_notes(index, vocabulary, counts)))


def _records(
    name: str, index: AudioIndex, vocabulary: Vocabulary, available: np.ndarray
) -> Iterator[tuple[str, list[str]]]:
    """Yields path and mids of the available clips of a set, each clip once."""
    table, mids = index.segments, vocabulary.mids
    lists = FULL_LISTS if name == FULL_NAME and name not in table.lists else (name,)
    in_set = {row for part in lists for row in table.lists[part]} if len(lists) > 1 and table.repeats else set()
    for part in lists:
        for row in table.lists[part]:
            if available[row] and table.repeats.get(row) not in in_set:
                yield index.path(row), [mids[i] for i in table.classes(row)]


def _write_missing(path: str, name: str, table: SegmentTable, vocabulary: Vocabulary, available: np.ndarray) -> None:
    """Writes the clips of a list without audio in the official format, which download tools accept."""
    rows = table.lists[name]
    missing = [row for row in rows if not available[row]]
    with atomic_text(path) as file:
        file.write(f"# {name}: clips without audio\n# num_ytids={len(missing)} of {len(rows)}\n")
        file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
        for row in missing:
            mids = ",".join(vocabulary.mids[i] for i in table.classes(row))
            file.write(f'{table.ids[row]}, {table.starts[row]:.3f}, {table.ends[row]:.3f}, "{mids}"\n')


_ClassCounts = dict[str, tuple[np.ndarray, np.ndarray]]
"""By list name: the number of listed and of found clips of every class."""


def _class_counts(table: SegmentTable, vocabulary: Vocabulary, available: np.ndarray) -> _ClassCounts:
    index, classes, counts = np.arange(len(table.ids)), len(vocabulary), {}
    for name, rows in table.lists.items():
        in_list = (rows.start <= index) & (index < rows.stop)
        counts[name] = table.class_counts(in_list, classes), table.class_counts(in_list & available, classes)
    return counts


def _write_coverage(path: str, vocabulary: Vocabulary, counts: _ClassCounts) -> None:
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = [f"{name}_{kind}" for name in counts for kind in ("listed", "found")]
        writer.writerow(["index", "mid", "display_name", *columns])
        for i, (mid, label) in enumerate(zip(vocabulary.mids, vocabulary.names)):
            writer.writerow([i, mid, label, *(kind[i] for pair in counts.values() for kind in pair)])


def _no_audio_message(name: str, listed: int, index: AudioIndex, audio: Sequence[str]) -> str:
    folders = " and ".join(map(printable_path, audio))
    if index.num_files:
        return (
            f"none of the {listed:,} clips of {name} is among the {index.num_files:,} audio files under {folders}; "
            "file names must contain the ids: name the right folders with --audio, or omit the list."
        )
    if index.unsupported:
        return f"{folders} has {index.unsupported} in an unsupported format: convert the audio to FLAC or WAV."
    return f"there is no audio file under {folders}: name the folders of the audio with --audio."


def _notes(index: AudioIndex, vocabulary: Vocabulary, counts: _ClassCounts) -> Iterator[str]:
    for name, (listed, found) in counts.items():
        share = found / np.maximum(listed, 1)
        lowest = [i for i in np.argsort(share, kind="stable") if found[i] < listed[i]][:_LEAST_COVERED]
        if lowest:
            shares = ", ".join(f"{vocabulary.names[i]} {found[i]:,} of {listed[i]:,}" for i in lowest)
            yield f"least covered in {name}: {shares}"
        if uncovered := int(np.count_nonzero((listed > 0) & (found == 0))):
            yield f"classes of {name} without any audio: {uncovered}"
    yield from _shared_clips(index.segments)
    if index.num_duplicates:
        used, unused = index.duplicate_example
        yield (
            f"files not used because another file has the same clip: {index.num_duplicates:,}, such as {unused} beside "
            f"{used}; a file named after the right start time is preferred, then the first by path"
        )
    mismatches = np.flatnonzero(index.times == _TIME_DIFFERS)
    if len(mismatches):
        row = int(mismatches[0])
        yield (
            f"files named after another start time than that of their clip: {len(mismatches):,}, such as "
            f"{index.path(row)} of a clip that starts at {index.segments.starts[row]:g} s; check that they contain the "
            "right segment"
        )
    if index.unsupported:
        yield f"files in unsupported formats are ignored, such as {index.unsupported}; convert them to FLAC or WAV"
    if index.not_utf8:
        example = printable_path(index.not_utf8[0])
        yield f"files ignored because their name is not UTF-8: {len(index.not_utf8):,}, such as {example}; rename them"
    if index.not_files:
        example = printable_path(index.not_files[0])
        yield f"pipes, devices and broken links are ignored: {len(index.not_files):,}, such as {example}"


def _shared_clips(table: SegmentTable) -> Iterator[str]:
    """Yields a note for every two lists with clips in common: training on evaluation clips invalidates the metrics."""
    list_of_row = {row: name for name, rows in table.lists.items() for row in rows} if table.repeats else {}
    pairs: dict[tuple[str, str], list[int]] = {}
    for row, first in table.repeats.items():
        pairs.setdefault((list_of_row[row], list_of_row[first]), []).append(row)
    for (later, earlier), rows in pairs.items():
        yield f"clips of {later} that are also in {earlier}: {len(rows):,}, such as {table.ids[rows[0]]}"
