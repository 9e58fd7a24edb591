"""Tables (CSV) of recordings and their classes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from psla_jax.data.prepare.collection import PARTS, Clip, Collection, CollectionError, ExcludedClip
from psla_jax.data.prepare.walk import printable_path, walk
from psla_jax.runtime.streams import regular_file

FILE_COLUMNS = (
    *("filename", "file_name", "file", "filepath", "file_path", "path", "fname", "slice_file_name", "wav", "audio"),
    *("audio_path", "audio_file", "recording", "clip"),
)
LABEL_COLUMNS = (
    *("labels", "label", "classes", "class", "class_name", "categories", "category", "tags", "tag", "species"),
    *("targets", "target"),
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold")
"""Column names that are recognised, in order of preference; upper and lower case are equivalent."""
_RECOGNISED = {"file": FILE_COLUMNS, "label": LABEL_COLUMNS, "split": SPLIT_COLUMNS}
SEPARATORS = "|;,"
"""Possible separators of labels; the first of these that occurs anywhere in the label column is used."""
_FOLD = re.compile(r"(?:fold[ _]?)?(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use; an empty name selects the first recognised one."""

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
    """Returns the clips of a CSV with a file, its labels and optionally a part or a fold in each row.

    A file is looked up by its path relative to `audio`, then by its name, with or without extension, in `audio` and its
    subfolders.

    Args:
        path: the CSV, in UTF-8, with a header; cells are separated by comma, semicolon or tab.
        audio: folder of the recordings; empty for the folder of the CSV.
        columns: column names, where they are not recognised ones.
        separator: separator of labels: one of ``|;,``, empty for none (a cell is one label), None to detect it.
        fold: evaluation fold, if the CSV has folds; empty for the last one.
        layout: name of the data set for the screen; empty for a description of the table.
        progress: whether to show a file counter on stderr.

    Raises:
        CollectionError, PathError: the CSV is missing or malformed, a column is missing, a file is listed twice or its
            name is ambiguous, no clip can be used, or the folder of the recordings cannot be listed.
    """
    header, rows = _read_rows(path, columns)
    base = os.path.abspath(audio or os.path.dirname(path))
    files, excluded = _locate(path, rows, base, progress)
    if separator is None:
        separator = next((mark for mark in SEPARATORS if any(mark in row.label for row in rows)), "")
    labels = {row.line: _labels(row.label, separator) for row in rows}
    exclusive = max(map(len, labels.values())) == 1
    parts, split = _parts(path, rows, header.split, fold)
    clips = []
    for row, file in files:
        if exclusive and not labels[row.line]:
            excluded.append(ExcludedClip(file, f"has no label in line {row.line}: add one, or remove the line."))
        else:
            clips.append(Clip(file, labels[row.line], parts.get(row.line, "")))
    if not clips:
        raise CollectionError(f"no clip of {path} can be used: {printable_path(excluded[0].path)} {excluded[0].reason}")
    kind = "one label per clip" if exclusive else "several labels per clip"
    layout = layout or f"table with the columns {header.file} and {header.label}, {kind}"
    return Collection(layout + split, tuple(clips), exclusive, tuple(excluded))


def _read_rows(path: str, columns: Columns) -> tuple[Columns, list[_Row]]:
    """Returns the column names as spelled in the file, and the rows below the header."""
    delimiter, lines = _read_lines(path)
    header = lines[0][1]
    named = Columns(*(_column(path, header, getattr(columns, kind), kind) for kind in _RECOGNISED))
    positions = [header.index(name) if name else None for name in (named.file, named.label, named.split)]
    rows = []
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise CollectionError(
                f"line {line} of {path} has {len(cells)} cells and the header {len(header)}: put cells with a "
                f"{delimiter!r} in quotes."
            )
        row = _Row(line, *("" if position is None else cells[position] for position in positions))
        if not row.file:
            raise CollectionError(f"line {line} of {path} names no file: fill in its {named.file}.")
        rows.append(row)
    return named, rows


def _read_lines(path: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Returns the delimiter, and the number and cells of every line that is not blank: the header and at least one."""
    try:
        with regular_file(path) as name, open(name, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise CollectionError(f"the table {path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise CollectionError(f"the table {path} is not in UTF-8: save it as CSV UTF-8.") from error
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise CollectionError(
            f"the table {path} is not a valid CSV (line {reader.line_num}: {error}): save it again."
        ) from error
    if len(lines) < 2:
        raise CollectionError(f"the table {path} lists no clip: it needs a header and a line for each recording.")
    return delimiter, lines


def _column(path: str, header: Sequence[str], requested: str, kind: str) -> str:
    """Returns the name of a column in the header; empty for a split column that does not exist."""
    lower = [name.lower() for name in header]
    if requested:
        name = requested if requested in header else ""
    else:
        name = next((header[lower.index(name)] for name in _RECOGNISED[kind] if name in lower), "")
    if name or (kind == "split" and not requested):
        return name
    lacks = f"no column {requested!r}" if requested else f"none of the columns {', '.join(_RECOGNISED[kind])}"
    raise CollectionError(f"{path} has {lacks}, only {', '.join(header)}: name one with --{kind}-column.")


def _locate(
    path: str, rows: list[_Row], base: str, progress: bool
) -> tuple[list[tuple[_Row, str]], list[ExcludedClip]]:
    """Returns the rows with their audio files, and the missing clips."""
    line_of_file: dict[str, int] = {}
    files, missing = [], []
    files_by_name: dict[str, list[str]] | None = None
    for row in rows:
        file = os.path.normpath(os.path.join(base, row.file))
        if not os.path.isfile(file):
            if files_by_name is None:
                files_by_name = _files_by_name(base, progress)
            name = os.path.basename(row.file.replace("\\", "/"))
            candidates = files_by_name.get(name) or files_by_name.get(f"{name}.", [])
            if len(candidates) > 1:
                raise CollectionError(
                    f"line {row.line} of {path} names {row.file}, which matches {len(candidates)} files, such as "
                    f"{candidates[0]} and {candidates[1]}: write the path relative to {base}."
                )
            if not candidates:
                reason = f"is missing (line {row.line} of {path}): correct the line, or name its folder with --audio."
                missing.append(ExcludedClip(file, reason))
                continue
            file = candidates[0]
        if file in line_of_file:
            raise CollectionError(
                f"lines {line_of_file[file]} and {row.line} of {path} both name {row.file}: put all its labels in one "
                "line, separated by semicolons."
            )
        line_of_file[file] = row.line
        files.append((row, file))
    return files, missing


def _files_by_name(base: str, progress: bool) -> dict[str, list[str]]:
    """Returns the audio files below a folder by name, and by name up to and including the last dot."""
    files: dict[str, list[str]] = {}
    for listing in walk([base], progress=progress):
        for name in listing.audio:
            file = os.path.join(listing.folder, name)
            files.setdefault(name, []).append(file)
            files.setdefault(name[: name.rfind(".") + 1], []).append(file)
    return files


def _labels(cell: str, separator: str) -> tuple[str, ...]:
    parts = cell.split(separator) if separator else [cell]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _parts(path: str, rows: list[_Row], column: str, fold: str) -> tuple[dict[int, str], str]:
    """Returns the part of every line (none without a split column), and a description of the split."""
    if not column:
        if fold:
            raise CollectionError(f"{path} has no column of folds, but --fold is {fold}: omit it.")
        return {}, ""
    if {row.split.lower() for row in rows} <= set(PARTS):
        if fold:
            raise CollectionError(f"the column {column} of {path} has no folds, but --fold is {fold}: omit it.")
        return {row.line: PARTS[row.split.lower()] for row in rows}, f"; split by its column {column}"
    folds = {row.line: number[1] for row in rows if (number := _FOLD.match(row.split))}
    invalid = next((row for row in rows if row.line not in folds), None)
    if invalid is not None:
        raise CollectionError(
            f"line {invalid.line} of {path} has the {column} {invalid.split!r}: use train, validation and evaluation, "
            "or fold numbers."
        )
    numbers = sorted(set(folds.values()), key=int)
    chosen = fold or numbers[-1]
    if chosen not in numbers:
        raise CollectionError(f"{path} has the folds {', '.join(numbers)}, but --fold is {chosen}: name one of these.")
    if len(numbers) < 2:
        raise CollectionError(f"{path} has only the fold {chosen}: training needs another one.")
    parts = {line: "evaluation" if value == chosen else "train" for line, value in folds.items()}
    return parts, f"; fold {chosen} of {', '.join(numbers)} is for evaluation"
