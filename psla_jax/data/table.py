"""A CSV of recordings and their classes -> clips."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from psla_jax.data.collection import PARTS, Clip, Collection, CollectionError, LeftOut
from psla_jax.data.files import shown, walk

FILE_COLUMNS = (
    *("filename", "file_name", "file", "filepath", "file_path", "path", "fname", "slice_file_name", "wav", "audio"),
    *("audio_path", "audio_file", "recording", "clip"),
)
LABEL_COLUMNS = (
    *("labels", "label", "classes", "class", "class_name", "categories", "category", "tags", "tag", "species"),
    *("targets", "target"),
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold")
"""Names of columns that are looked for, the best first; small and capital letters are the same."""
SEPARATORS = "|;,"
"""What may stand between labels: the first of these that is found anywhere in the column, and no other."""


@dataclass(frozen=True)
class Columns:
    """The columns to use; an empty name is for finding it by the usual ones."""

    file: str = ""
    label: str = ""
    split: str = ""


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    label: str
    split: str


def read(
    path: str,
    audio: str = "",
    *,
    columns: Columns = Columns(),
    separator: str | None = None,
    fold: str = "",
    layout: str = "",
    progress: bool = True,
) -> Collection:
    """The clips that a CSV lists: a file and its labels on each line, and a split or a fold if it has one.

    A file is looked for at its path from `audio`, then by its name, with or without ending, in `audio` and below.

    Args:
        path: the CSV, in UTF-8, with a header; cells divided by comma, semicolon or tab.
        audio: folder of the recordings; empty for that of the CSV.
        columns: their names, where they are not usual ones.
        separator: what stands between the labels of a clip: one of ``|;,``, empty for nothing (a cell is one label),
            None to find out.
        fold: which fold evaluates, if the CSV has folds; empty for the last one.
        layout: what to call the data set on the screen; empty to describe the table.
        progress: whether to count files on stderr.

    Raises:
        CollectionError: the CSV is missing or broken, a column is not found, a file is listed twice or its name is not
            unique, or no file is there.
        FilesError: the folder of the recordings cannot be listed.
    """
    header, rows = _rows(path, columns)
    base = os.path.abspath(audio or os.path.dirname(path))
    found, left_out = _located(path, rows, base, progress)
    separators = _separator(rows) if separator is None else separator
    labels = {row.line: _labels(row.label, separators) for row in rows}
    exclusive = max(map(len, labels.values())) == 1
    parts, how = _parts(path, rows, header.split, fold)
    clips = []
    for row, file in found:
        if exclusive and not labels[row.line]:
            left_out.append(LeftOut(file, f"has no label in line {row.line}: give it one, or leave it out."))
        else:
            clips.append(Clip(file, labels[row.line], parts.get(row.line, "")))
    if not clips:
        raise CollectionError(f"no clip of {path} can be used: {shown(left_out[0].path)} {left_out[0].reason}")
    kind = "one label a clip" if exclusive else "several labels a clip"
    layout = layout or f"table with the columns {header.file} and {header.label}, {kind}"
    return Collection(layout + how, tuple(clips), exclusive, tuple(left_out))


def _rows(path: str, columns: Columns) -> tuple[Columns, list[_Row]]:
    """The columns as they are named in the file, and the lines below the header."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise CollectionError(f"the table {path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise CollectionError(f"the table {path} is not in UTF-8: save it as CSV UTF-8.") from error
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise CollectionError(
            f"the table {path} is no CSV (line {reader.line_num}: {error}): save it again."
        ) from error
    if len(lines) < 2:
        raise CollectionError(f"the table {path} lists no clip: it needs a header and a line for each recording.")
    header = lines[0][1]
    named = Columns(
        _column(path, header, columns.file, FILE_COLUMNS, "file"),
        _column(path, header, columns.label, LABEL_COLUMNS, "label"),
        _column(path, header, columns.split, SPLIT_COLUMNS, "split"),
    )
    places = [header.index(name) if name else None for name in (named.file, named.label, named.split)]
    rows = []
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise CollectionError(
                f"line {line} of {path} has {len(row)} cells and the header {len(header)}: put cells with a "
                f"{delimiter!r} in quotes."
            )
        cells = ["" if place is None else row[place] for place in places]
        if not cells[0]:
            raise CollectionError(f"line {line} of {path} names no file: fill in its {named.file}.")
        rows.append(_Row(line, *cells))
    return named, rows


def _column(path: str, header: Sequence[str], wanted: str, usual: Sequence[str], kind: str) -> str:
    """The name of a column in the header; empty for a split that is not there."""
    if wanted and wanted in header:
        return wanted
    small = [name.lower() for name in header]
    name = next((name for name in usual if name in small), None) if not wanted else None
    if name is not None:
        return header[small.index(name)]
    if not wanted and kind == "split":
        return ""
    lacks = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(usual)}"
    raise CollectionError(f"{path} has {lacks}, only {', '.join(header)}: name one with --{kind}-column.")


def _located(path: str, rows: list[_Row], base: str, progress: bool) -> tuple[list[tuple[_Row, str]], list[LeftOut]]:
    """The file of every row, and the rows without one."""
    places: dict[str, int] = {}
    found, missing = [], []
    below: dict[str, list[str]] | None = None
    for row in rows:
        file = os.path.normpath(os.path.join(base, row.file))
        if not os.path.isfile(file):
            below = _by_name(base, progress) if below is None else below
            name = os.path.basename(row.file.replace("\\", "/"))
            same = below.get(name) or below.get(f"{name}.", [])
            if len(same) > 1:
                raise CollectionError(
                    f"line {row.line} of {path} names {row.file}, of which there are {len(same)}, such as {same[0]} "
                    f"and {same[1]}: write the path from {base}."
                )
            if not same:
                reason = f"is missing (line {row.line} of {path}): correct the line, or name its folder with --audio."
                missing.append(LeftOut(file, reason))
                continue
            file = same[0]
        if file in places:
            raise CollectionError(
                f"lines {places[file]} and {row.line} of {path} are both about {row.file}: give all its labels in one "
                "line, with ; between them."
            )
        places[file] = row.line
        found.append((row, file))
    return found, missing


def _by_name(base: str, progress: bool) -> dict[str, list[str]]:
    """The audio files below a folder by their name, and by their name up to and including the last dot."""
    names: dict[str, list[str]] = {}
    for listing in walk([base], progress=progress):
        for name in listing.audio:
            file = os.path.join(listing.folder, name)
            names.setdefault(name, []).append(file)
            names.setdefault(name[: name.rfind(".") + 1], []).append(file)
    return names


def _separator(rows: list[_Row]) -> str:
    return next((mark for mark in SEPARATORS if any(mark in row.label for row in rows)), "")


def _labels(cell: str, separator: str) -> tuple[str, ...]:
    parts = cell.split(separator) if separator else [cell]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _parts(path: str, rows: list[_Row], column: str, fold: str) -> tuple[dict[int, str], str]:
    """The part of every line, none if the table does not say; and what to tell about it."""
    if not column:
        if fold:
            raise CollectionError(f"{path} has no column of folds, but --fold is {fold}: leave it out.")
        return {}, ""
    values = {row.line: row.split for row in rows}
    if set(map(str.lower, values.values())) <= set(PARTS):
        if fold:
            raise CollectionError(f"the column {column} of {path} has no folds, but --fold is {fold}: leave it out.")
        return {line: PARTS[value.lower()] for line, value in values.items()}, f"; its column {column} divides them"
    number = re.compile(r"(?:fold[ _]?)?(\d+)$", re.IGNORECASE)
    folds = {line: match[1] for line, value in values.items() if (match := number.match(value))}
    odd = next((row for row in rows if row.line not in folds), None)
    if odd is not None:
        raise CollectionError(
            f"line {odd.line} of {path} has the {column} {odd.split!r}: use train, validation and evaluation, or "
            "numbers of folds."
        )
    known = sorted(set(folds.values()), key=int)
    chosen = fold or known[-1]
    if chosen not in known:
        raise CollectionError(f"{path} has the folds {', '.join(known)}, but --fold is {chosen}: name one of these.")
    if len(known) < 2:
        raise CollectionError(f"{path} has only the fold {chosen}: there must be another one to train on.")
    parts = {line: "evaluation" if value == chosen else "train" for line, value in folds.items()}
    return parts, f"; fold {chosen} of {', '.join(known)} evaluates"
