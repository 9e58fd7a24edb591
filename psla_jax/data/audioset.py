"""AudioSet's segment lists, and whatever audio is there -> datafiles (https://research.google.com/audioset).

Nobody's copy is whole, and everybody names the files in another way. So the lists say which clips there are, audio
files are found by looking up the 11 characters of their YouTube id, and what is missing is counted and listed.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psla_jax.cache import cache_directory
from psla_jax.data import datafile
from psla_jax.data.files import Listing, require_new, shown, walk
from psla_jax.data.segments import ID_LENGTH, AudioSetError, Clips
from psla_jax.download import fetch
from psla_jax.files import written_aside
from psla_jax.ontology import Ontology, Vocabulary

ONTOLOGY_URL = "https://raw.githubusercontent.com/audioset/ontology/master/ontology.json"
OFFICIAL = "audioset"
"""The name that stands for the official ontology, as it does for the official class list."""
FULL, FULL_NAME = ("balanced_train", "unbalanced_train"), "train"
"""The sets that the reference trains on together, and what they are called then."""
_TIME = re.compile(r"[_\- ]+(\d+(?:\.\d+)?)")
_AGREES, _SILENT, _CONTRADICTS = 0, 1, 2
"""Whether a file's name gives the start time of its clip, none, or another one."""
_SHOWN = 5


@dataclass(eq=False)
class Index:
    """Which audio file belongs to which clip; the result does not depend on the order in which files are found."""

    clips: Clips
    folders: list[str] = field(default_factory=list)
    names: list[str] = field(init=False)
    """File name by row, empty where none is found."""
    places: np.ndarray = field(init=False)
    """int32 ``(rows,)``: the number of its folder."""
    times: np.ndarray = field(init=False)
    """int8 ``(rows,)``: whether its name gives the clip's start time."""
    files: int = 0
    foreign: list[str] = field(default_factory=list)
    """The first files of kinds that are not read."""
    unnameable: list[str] = field(default_factory=list)
    """Audio files whose path is not UTF-8."""
    doubles: int = 0
    """Files that were left aside for another one of the same clip."""
    examples: list[tuple[str, str]] = field(default_factory=list)
    """The first of them: what was taken, and what was left, when the second one was found."""

    def __post_init__(self) -> None:
        self.names = [""] * len(self.clips.ids)
        self.places = np.zeros(len(self.clips.ids), np.int32)
        self.times = np.zeros(len(self.clips.ids), np.int8)

    def add(self, listing: Listing) -> None:
        """Looks up the files of a folder."""
        few = listing.foreign[: _SHOWN - len(self.foreign)]
        self.foreign += [shown(os.path.join(listing.folder, name)) for name in few]
        self.unnameable += [os.path.join(listing.folder, name) for name in listing.unnameable]
        self.files += len(listing.audio)
        number = len(self.folders)
        self.folders.append(listing.folder)
        for name in listing.audio:
            row, rest = self._row(name[: name.rfind(".")])
            if row >= 0:
                self._offer(row, number, name, self._time(row, rest))

    def _row(self, stem: str) -> tuple[int, str]:
        """The clip whose id is in a file's name, -1 for none, and what follows the id.

        Ids hold any letter, digit, ``-`` and ``_``, so a name cannot be split; every 11 characters of it are looked up.
        A place where the name ends or goes on with something else than a letter or digit is preferred: ``Y`` and the
        first 10 characters of an id may be another id.
        """
        rows, found = self.clips.rows, (-1, "")
        for i in range(len(stem) - ID_LENGTH + 1):
            row = rows.get(stem[i : i + ID_LENGTH], -1)
            if row >= 0:
                rest = stem[i + ID_LENGTH :]
                if not rest[:1].isalnum():
                    return row, rest
                found = found if found[0] >= 0 else (row, rest)
        return found

    def _time(self, row: int, rest: str) -> int:
        """Whether what follows the id, such as ``_30.000_40.000`` or ``_30000``, is the clip's start in s or ms."""
        match = _TIME.match(rest)
        if match is None:
            return _SILENT
        start, given = self.clips.starts[row], float(match[1])
        return _AGREES if abs(given - start) < 1 or abs(given - 1000 * start) < 1 else _CONTRADICTS

    def _offer(self, row: int, number: int, name: str, time: int) -> None:
        """Takes a file for a clip, unless there is a better one: of the right start time, then first by path."""
        if self.names[row]:
            self.doubles += 1
            before, offered = self.path(row), os.path.join(self.folders[number], name)
            better = (time, offered) < (self.times[row], before)
            if len(self.examples) < _SHOWN:
                self.examples.append((offered, before) if better else (before, offered))
            if not better:
                return
        self.names[row], self.places[row], self.times[row] = name, number, time

    def row_of_file(self, row: int) -> int:
        """The row under which the file of a clip is kept: that of the first list that has the clip."""
        return self.clips.repeats.get(row, row)

    def path(self, row: int) -> str:
        """The audio file of a clip, which has one."""
        row = self.row_of_file(row)
        return f"{self.folders[self.places[row]]}{os.sep}{self.names[row]}"

    def found(self) -> np.ndarray:
        """bool ``(rows,)``: which clips have a file."""
        there = np.fromiter(map(bool, self.names), bool, len(self.names))
        for row, first in self.clips.repeats.items():
            there[row] = there[first]
        return there


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made. All paths are absolute."""

    datafiles: dict[str, str]
    """By name of the set; ``train`` is balanced and unbalanced together."""
    listed: dict[str, int]
    """Clips of each segment list."""
    found: dict[str, int]
    """Clips of each datafile."""
    missing: dict[str, str]
    """The clips of each segment list that have no audio, as a segment list again."""
    labels: str
    """The class list."""
    coverage: str
    """Listed and found clips of every class, as CSV."""
    ontology: str
    """The ontology, empty if none was asked for."""
    notes: tuple[str, ...]
    """What is odd about the audio, a sentence each."""

    def report(self) -> str:
        """What was made, and what was noticed, in lines for the screen."""
        lines = []
        for name, path in self.datafiles.items():
            if name in self.listed:
                share = 100 * self.found[name] / self.listed[name]
                lines.append(f"{path}: {self.found[name]:,} of {self.listed[name]:,} clips ({share:.1f}%)")
            else:
                lines.append(f"{path}: {self.found[name]:,} clips, {' and '.join(FULL)} together")
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
    """Writes a datafile for every segment list, of the clips whose audio is there.

    ``eval_segments.csv`` gives ``eval_data.json``, and so on; balanced and unbalanced training lists together also give
    ``train_data.json``. Clips are in the order of their list. Audio stays where it is.

    Args:
        segments: segment lists as they are downloaded.
        audio: folders with audio files at any depth, under any name with the clip's id in it.
        out: the folder to write to.
        labels: class list, ``audioset`` for the official one.
        ontology: an ``ontology.json`` to check and to put beside the datafiles; ``audioset`` for the official one,
            which is downloaded once; empty for none.
        force: replace files that are there.
        progress: whether to show progress on stderr.

    Raises:
        AudioSetError, FilesError, VocabularyError, OntologyError, DownloadError: a list, a folder or the ontology
            cannot be used, a list has no audio at all, or a file is there already.
    """
    vocabulary, clips = Vocabulary.read(labels), Clips()
    for path in segments:
        clips.read(path, vocabulary)
    plan = _plan(os.path.abspath(out), clips, bool(ontology))
    require_new(plan.all(), force=force)
    hierarchy = _read_ontology(ontology, vocabulary) if ontology else ""
    index = Index(clips)
    for listing in walk(audio, progress=progress):
        index.add(listing)
    return _write(plan, index, vocabulary, hierarchy, audio)


@dataclass(frozen=True)
class _Plan:
    """The files to write."""

    datafiles: dict[str, str]
    missing: dict[str, str]
    labels: str
    coverage: str
    ontology: str

    def all(self) -> list[str]:
        files = [*self.datafiles.values(), *self.missing.values(), self.labels, self.coverage, self.ontology]
        return [path for path in files if path]


def _plan(out: str, clips: Clips, ontology: bool) -> _Plan:
    names = [*clips.sets, *([FULL_NAME] if set(FULL) <= set(clips.sets) else [])]
    return _Plan(
        datafiles={name: os.path.join(out, f"{name}_data.json") for name in names},
        missing={name: os.path.join(out, f"{name}_missing_segments.csv") for name in clips.sets},
        labels=os.path.join(out, "class_labels_indices.csv"),
        coverage=os.path.join(out, "coverage.csv"),
        ontology=os.path.join(out, "ontology.json") if ontology else "",
    )


def ontology_file(name: str) -> str:
    """The file that a name means: ``audioset`` is the official ontology, downloaded into the cache once.

    Raises:
        DownloadError: it cannot be downloaded; the message says where a copy can be put.
    """
    if name != OFFICIAL or os.path.exists(name):
        return name
    return str(fetch(ONTOLOGY_URL, cache_directory() / "audioset" / "ontology.json", check=_check_ontology))


def _check_ontology(path: Path) -> None:
    """Raises OntologyError if a download is no ontology."""
    Ontology.read(path)


def _read_ontology(name: str, vocabulary: Vocabulary) -> str:
    """The text of an ontology that can be used with these classes."""
    path = ontology_file(name)
    ontology = Ontology.read(path)
    lacking = [mid for mid in vocabulary.mids if mid not in ontology]
    if lacking:
        raise AudioSetError(
            f"the ontology {path} lacks {len(lacking)} of the {len(vocabulary)} classes, such as {lacking[0]}: use the "
            "one that the class list belongs to."
        )
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def _write(plan: _Plan, index: Index, vocabulary: Vocabulary, ontology: str, audio: Sequence[str]) -> Prepared:
    clips, found = index.clips, index.found()
    for name, rows in clips.sets.items():
        if not found[rows.start : rows.stop].any():
            raise AudioSetError(_nothing_found(name, len(rows), index, audio))
    os.makedirs(os.path.dirname(plan.labels), exist_ok=True)
    vocabulary.write(plan.labels)
    if plan.ontology:
        with written_aside(plan.ontology) as file:
            file.write(ontology)
    written = {
        name: datafile.write(path, _records(name, index, vocabulary, found)) for name, path in plan.datafiles.items()
    }
    for name, path in plan.missing.items():
        _write_missing(path, name, clips, vocabulary, found)
    of_class = _counts(clips, vocabulary, found)
    _write_coverage(plan.coverage, vocabulary, of_class)
    return Prepared(
        datafiles=plan.datafiles,
        listed={name: len(rows) for name, rows in clips.sets.items()},
        found=written,
        missing=plan.missing,
        labels=plan.labels,
        coverage=plan.coverage,
        ontology=plan.ontology,
        notes=tuple(_notes(index, vocabulary, of_class)),
    )


def _records(name: str, index: Index, vocabulary: Vocabulary, found: np.ndarray) -> Iterator[tuple[str, list[str]]]:
    """Path and mids of the clips of a set that are there, each clip once."""
    clips, mids = index.clips, vocabulary.mids
    parts = FULL if name == FULL_NAME and name not in clips.sets else (name,)
    taken = {row for part in parts for row in clips.sets[part]} if len(parts) > 1 and clips.repeats else set()
    for part in parts:
        for row in clips.sets[part]:
            if found[row] and clips.repeats.get(row) not in taken:
                yield index.path(row), [mids[i] for i in clips.classes(row)]


def _write_missing(path: str, name: str, clips: Clips, vocabulary: Vocabulary, found: np.ndarray) -> None:
    """The clips of a list without audio, in the form of the official lists, so that a downloader can be given it."""
    rows = clips.sets[name]
    missing = [row for row in rows if not found[row]]
    with written_aside(path) as file:
        file.write(f"# {name}: clips without audio\n# num_ytids={len(missing)} of {len(rows)}\n")
        file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
        for row in missing:
            mids = ",".join(vocabulary.mids[i] for i in clips.classes(row))
            file.write(f'{clips.ids[row]}, {clips.starts[row]:.3f}, {clips.ends[row]:.3f}, "{mids}"\n')


_Counts = dict[str, tuple[np.ndarray, np.ndarray]]
"""Listed and found clips of every class, by set."""


def _counts(clips: Clips, vocabulary: Vocabulary, found: np.ndarray) -> _Counts:
    counts = {}
    for name, rows in clips.sets.items():
        inside = np.zeros(len(clips.ids), bool)
        inside[rows.start : rows.stop] = True
        counts[name] = clips.counts(inside, len(vocabulary)), clips.counts(inside & found, len(vocabulary))
    return counts


def _write_coverage(path: str, vocabulary: Vocabulary, counts: _Counts) -> None:
    with written_aside(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = [f"{name}_{kind}" for name in counts for kind in ("listed", "found")]
        writer.writerow(["index", "mid", "display_name", *columns])
        for i, (mid, label) in enumerate(zip(vocabulary.mids, vocabulary.names)):
            writer.writerow([i, mid, label, *(kind[i] for pair in counts.values() for kind in pair)])


def _nothing_found(name: str, listed: int, index: Index, audio: Sequence[str]) -> str:
    where = " and ".join(map(shown, audio))
    if index.files:
        return (
            f"none of the {listed:,} clips of {name} is among the {index.files:,} audio files under {where}, whose "
            "names must have the ids in them: name the right folders with --audio, or leave the list out."
        )
    if index.foreign:
        return f"{where} has {index.foreign[0]}, which is of a kind that is not read: convert the audio to FLAC or WAV."
    return f"there is no audio file under {where}: name the folders of the audio with --audio."


def _notes(index: Index, vocabulary: Vocabulary, counts: _Counts) -> Iterator[str]:
    for name, (listed, found) in counts.items():
        share = found / np.maximum(listed, 1)
        least = [i for i in np.argsort(share, kind="stable") if found[i] < listed[i]][:_SHOWN]
        if least:
            shares = ", ".join(f"{vocabulary.names[i]} {found[i]:,} of {listed[i]:,}" for i in least)
            yield f"least covered in {name}: {shares}"
        if lost := int(np.count_nonzero((listed > 0) & (found == 0))):
            yield f"classes of {name} without any audio: {lost}"
    yield from _shared_clips(index.clips)
    if index.doubles:
        taken, left = index.examples[0]
        yield (
            f"files of a clip that another file has too: {index.doubles:,}, such as {left} beside {taken}; the one "
            "named after the right start time is taken, else the first by path"
        )
    others = np.flatnonzero(index.times == _CONTRADICTS)
    if len(others):
        clip = int(others[0])
        yield (
            f"files named after another start time than their clip has: {len(others):,}, such as {index.path(clip)} of "
            f"a clip that starts at {index.clips.starts[clip]:g} s; are they cut from the right place?"
        )
    if index.foreign:
        yield f"files of kinds that are not read are left out, such as {index.foreign[0]}; convert them to FLAC or WAV"
    if index.unnameable:
        example = shown(index.unnameable[0])
        yield f"files left out for a name that is not UTF-8: {len(index.unnameable):,}, such as {example}; rename them"


def _shared_clips(clips: Clips) -> Iterator[str]:
    """The clips that two lists have in common: an evaluation clip that is trained on spoils the figures."""
    of_row = {row: name for name, rows in clips.sets.items() for row in rows} if clips.repeats else {}
    pairs: dict[tuple[str, str], list[int]] = {}
    for row, first in clips.repeats.items():
        pairs.setdefault((of_row[row], of_row[first]), []).append(row)
    for (one, other), rows in pairs.items():
        yield f"clips of {one} that are also in {other}: {len(rows):,}, such as {clips.ids[rows[0]]}"
