"""Tables (CSV) of recordings and their classes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psla_jax.audio.file_kinds import AUDIO_EXTENSIONS
from psla_jax.audio.segments import WHOLE
from psla_jax.data.prepare import audioset_strong, label_cells, label_files, segments
from psla_jax.data.prepare.collection import Clip, Collection, CollectionError, ExcludedClip, part_names
from psla_jax.data.prepare.locate import find_files
from psla_jax.data.prepare.names import nfc
from psla_jax.data.prepare.walk import printable_path
from psla_jax.runtime.streams import regular_file

FILE_COLUMNS = (
    *("filename", "file_name", "file", "filepath", "file_path", "path", "fname", "slice_file_name", "wav", "audio"),
    *("audio_path", "audio_file", "recording", "clip", "begin path", "begin file", audioset_strong.ID_COLUMN),
)
LABEL_COLUMNS = (
    *("labels", "label", "classes", "class", "class_name", "categories", "category", "tags", "tag", "species"),
    *("targets", "target", "primary_label", "scene_label", "event_label", "event", "annotation", "common name"),
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold")
GROUP_COLUMNS = (
    *("src_file", "fsid", "freesound_id", "recording_id", "source_id", "source_file", "identifier", "video_id"),
    *("youtube_id", "track_id", "speaker", "speaker_id", "artist", "session", "recordist", "site"),
)
"""Column names that are recognised, in order of preference; upper and lower case are equivalent."""
_RECOGNISED = {"file": FILE_COLUMNS, "label": LABEL_COLUMNS, "split": SPLIT_COLUMNS, "group": GROUP_COLUMNS}
_OPTIONAL = ("split", "group")
_FOLD = re.compile(r"(?:fold[ _]?)?(\d+)$", re.IGNORECASE)
_NUMBERS = re.compile(r"[\d\s.,;|]*")
_DELIMITER_LINE = re.compile(r"\s*\"?sep=([^\n])\"?\s*\n", re.IGNORECASE)
"""First line by which Excel says how cells are separated."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use; an empty name selects the first recognised one."""

    file: str = ""
    label: str = ""
    split: str = ""
    group: str = ""
    start: str = ""
    """``none`` to label whole recordings in any case."""
    end: str = ""


@dataclass(frozen=True)
class _Row:
    line: int
    time: tuple[float, float]
    """Start and end in seconds of a segment of the file."""
    file: str
    label: str
    split: str
    group: str
    fold: str = ""
    """Cell of a column ``fold``, which a table with parts of a split may have in addition."""


@dataclass(frozen=True)
class _Table:
    header: Columns
    """Names of the columns as spelled in the file; empty for a column that does not exist."""
    rows: list[_Row]
    notes: tuple[str, ...]
    times: str = ""
    """What segments are cut by, in words; empty if the rows are whole recordings."""
    layout: str = ""
    """Description of a file that is not a table."""


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

    With columns of starts and ends, each row is a segment of the file, and rows with the same times are one clip with
    all of their labels. A label file of Audacity belongs to the recording with its name.

    Files are looked up by :func:`psla_jax.data.prepare.locate.find_files`, and the ``segment_id`` of AudioSet's strong
    labels by :func:`psla_jax.data.prepare.audioset_strong.find_files`.

    Args:
        path: the CSV, in UTF-8, with a header; cells are separated by comma, semicolon or tab, or by the character in
            a first line such as ``sep=;``.
        audio: folder of the recordings; empty for the folder of the CSV.
        columns: column names, where they are not recognised ones. Clips with the same group stay on one side of a
            random split.
        separator: separator of labels: one of ``|;,``, empty for none (a cell is one label), None to detect it, and
            lists of Python and JSON.
        fold: evaluation fold, if the CSV has folds; empty for the last one.
        layout: name of the data set for the screen; empty for a description of the table.
        progress: whether to show a file counter on stderr.

    Raises:
        CollectionError, PathError: the CSV is missing or malformed, a column is missing, a file is listed twice or its
            name is ambiguous, no clip can be used, or the folder of the recordings cannot be listed.
    """
    base = os.path.abspath(audio or os.path.dirname(path))
    read_table = _read_label_file(path) or _read_table(path, base, columns)
    header, rows = read_table.header, read_table.rows
    files, excluded = _locate(path, read_table, base, progress)
    cells = _parse_labels(path, rows, separator)
    labels = {row.line: names for row, names in zip(rows, cells.labels)}
    parts, split = _parts(path, rows, header.split, fold)
    folds = _folds(rows)
    groups, group_notes = _groups(rows, header.group, cells.labels, requested=bool(columns.group))
    every_line = [
        (line, Clip(file, labels[line], parts.get(line, ""), groups.get(line, ""), *time, folds.get(line, "")))
        for line, time, file in ((row.line, row.time, file) for row, file in files)
    ]
    entries, invalid = segments.merge(every_line, path)
    exclusive = max(map(len, (*cells.labels, *(clip.labels for _, clip in entries)))) == 1
    clips, unlabelled = segments.with_labels(entries) if exclusive else ([clip for _, clip in entries], [])
    excluded += [*invalid, *unlabelled]
    if not clips:
        raise CollectionError(f"no clip of {path} can be used: {printable_path(excluded[0].path)} {excluded[0].reason}")
    kind = "one label per clip" if exclusive else ", ".join(filter(None, ["several labels per clip", cells.separated]))
    layout = layout or read_table.layout or f"table with the columns {header.file} and {header.label}, {kind}"
    if not exclusive and (absent := sum(not clip.labels for clip in clips)):
        group_notes.append(f"clips without a label, in which training treats every class as absent: {absent:,}")
    notes = (*read_table.notes, *cells.notes, *group_notes)
    collection = Collection(layout + split, tuple(clips), exclusive, tuple(excluded), notes)
    return segments.describe(collection, read_table.times, progress) if read_table.times else collection


def _read_table(path: str, base: str, columns: Columns) -> _Table:
    """Returns the columns that are used, and the rows below the header."""
    delimiter, lines = _read_lines(path)
    header, *body = (cells for _, cells in lines)
    _require_header(path, header, base)
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise CollectionError(
                f"line {line} of {path} has {len(cells)} cells and the header {len(header)}: put cells with a "
                f"{delimiter!r} in quotes."
            )
    named = {kind: _column(path, header, getattr(columns, kind), kind) for kind in _RECOGNISED}
    numeric = [name for name in segments.numeric_columns(header, body) if name not in named.values()]
    if not columns.group and named["group"] == named["label"]:
        named["group"] = ""
    times = _time_columns(path, header, columns, numeric)
    notes = [] if times or columns.start == segments.NONE else list(segments.unused_notes(header, numeric))
    texts = [name for name in header if name not in (*named.values(), *numeric)]
    if not columns.label and (better := _named_classes(header, body, named["label"], texts)):
        notes.append(f"the column {named['label']} has numbers, so the classes are those of the column {better}")
        named["label"] = better
    if secondary := [name for name in header if name.lower().startswith("secondary") and name not in named.values()]:
        notes.append(f"the column {secondary[0]} is not used: clips have only the labels of {named['label']}")
    fold = next((name for name in header if name.lower() == "fold"), "")
    positions = [header.index(name) if name else None for name in (*named.values(), fold)]
    rows = [
        _Row(line, _time(path, line, times, header, cells), *("" if p is None else cells[p] for p in positions))
        for line, cells in lines[1:]
    ]
    if nameless := next((row for row in rows if not row.file), None):
        raise CollectionError(f"line {nameless.line} of {path} names no file: fill in its {named['file']}.")
    notes += segments.raven_notes(times, (row.file for row in rows)) if times else []
    return _Table(Columns(**named), rows, tuple(notes), f"the columns {times.description}" if times else "")


def _require_header(path: str, header: Sequence[str], base: str) -> None:
    """Raises CollectionError if the first line names a recording, which would be lost as the name of a column."""
    if {name.lower() for name in header} & set(FILE_COLUMNS):
        return
    cells = [name for name in header if name]
    for cell, found in zip(cells, find_files(cells, base, progress=False)):
        if os.path.splitext(cell)[1].lower() in AUDIO_EXTENSIONS or len(found) == 1:
            raise CollectionError(
                f"the first line of {path} names the recording {cell}, so the table has no header: add one, such as "
                "filename,label."
            )


def _read_label_file(path: str) -> _Table | None:
    """Returns the rows of a label file of Audacity, which have the name of a recording; None for another file."""
    labels = label_files.read_audacity(path)
    if labels is None:
        return None
    file = os.path.splitext(os.path.basename(path))[0]
    rows = [_Row(label.line, label.time, file, label.text, "", "") for label in labels]
    return _Table(Columns(), rows, (), "its times", "label file of Audacity")


def _time_columns(
    path: str, header: Sequence[str], columns: Columns, numeric: Sequence[str]
) -> segments.TimeColumns | None:
    for kind in ("start", "end"):
        if (name := getattr(columns, kind)) not in ("", segments.NONE, *header):
            raise CollectionError(
                f"{path} has no column {name!r}, only {', '.join(header)}: name one with --{kind}-column."
            )
    found = segments.find_columns(header, columns.start, columns.end, numeric)
    if found is None and {columns.start, columns.end} - {"", segments.NONE}:
        raise CollectionError(f"{path} has no pair of times: name --start-column and --end-column.")
    return found


def _time(
    path: str, line: int, times: segments.TimeColumns | None, header: Sequence[str], cells: Sequence[str]
) -> tuple[float, float]:
    try:
        return times.time(dict(zip(header, cells))) if times else WHOLE
    except ValueError as error:
        raise CollectionError(f"line {line} of {path} has {error}.") from None


def _parse_labels(path: str, rows: list[_Row], separator: str | None) -> label_cells.CellLabels:
    try:
        return label_cells.parse([row.label for row in rows], separator)
    except label_cells.LabelError as error:
        raise CollectionError(f"line {rows[error.cell].line} of {path} {error}.") from error


def _named_classes(header: Sequence[str], body: Sequence[Sequence[str]], chosen: str, texts: Iterable[str]) -> str:
    """Returns another column with class names if the chosen one has only numbers, else nothing.

    This is a label column, or else the first of the columns `texts` with one text for each number.
    """
    column = {name: [cells[position] for cells in body] for position, name in enumerate(header)}

    def numeric(name: str) -> bool:
        return all(map(_NUMBERS.fullmatch, column[name]))

    def names_numbers(name: str) -> bool:
        pairs = set(zip(column[chosen], column[name]))
        sizes = {len(pairs), len(set(column[chosen])), len(set(column[name]))}
        return len(sizes) == 1 and 1 < len(pairs) < len(body) and all(column[name])

    if not numeric(chosen):
        return ""
    lower = {name.lower(): name for name in reversed(header)}
    candidates = [lower[name] for name in LABEL_COLUMNS if name in lower]
    found = [name for name in candidates if not numeric(name)]
    return next(iter([*found, *filter(names_numbers, texts)]), "")


def _read_lines(path: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Returns the delimiter, and the number and cells of every line that is not blank: the header and at least one."""
    try:
        with regular_file(path) as name, open(name, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise CollectionError(f"the table {path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise CollectionError(f"the table {path} is not in UTF-8: save it as CSV UTF-8.") from error
    hint = _DELIMITER_LINE.match(text)
    skipped = hint.end() if hint else 0
    delimiter = hint[1] if hint else max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text[skipped:]), delimiter=delimiter)
    first = text.count("\n", 0, skipped)
    try:
        lines = [(first + reader.line_num, [c.strip() for c in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise CollectionError(
            f"the table {path} is not a valid CSV (line {first + reader.line_num}: {error}): save it again."
        ) from error
    if len(lines) < 2:
        raise CollectionError(f"the table {path} lists no clip: it needs a header and a line for each recording.")
    return delimiter, lines


def _column(path: str, header: Sequence[str], requested: str, kind: str) -> str:
    """Returns the name of a column in the header; empty for an optional column that does not exist."""
    lower = [name.lower() for name in header]
    if requested:
        name = requested if requested in header else ""
    else:
        name = next((header[lower.index(name)] for name in _RECOGNISED[kind] if name in lower), "")
    if name or (kind in _OPTIONAL and not requested):
        return name
    lacks = f"no column {requested!r}" if requested else f"none of the columns {', '.join(_RECOGNISED[kind])}"
    raise CollectionError(
        f"{path} has {lacks}, only {', '.join(header)}: name one with --{kind}-column, or add a header."
    )


def _locate(path: str, table: _Table, base: str, progress: bool) -> tuple[list[tuple[_Row, str]], list[ExcludedClip]]:
    """Returns the rows with their audio files, and the missing clips."""
    line_of_file: dict[str, int] = {}
    files, missing = [], []
    is_strong = table.header.file.lower() == audioset_strong.ID_COLUMN
    find = audioset_strong.find_files if is_strong else find_files
    names = list(dict.fromkeys(row.file for row in table.rows))
    files_of_name = dict(zip(names, find(names, base, progress=progress)))
    for row in table.rows:
        found = files_of_name[row.file]
        if len(found) > 1:
            raise CollectionError(
                f"line {row.line} of {path} names {row.file}, which matches {len(found)} files, such as {found[0]} and "
                f"{found[1]}: write the path relative to {base}."
            )
        if not found:
            reason = f"is missing (line {row.line} of {path}): correct the line, or name its folder with --audio."
            missing.append(ExcludedClip(os.path.normpath(os.path.join(base, row.file)), reason, bool(table.times)))
            continue
        file = found[0]
        if file in line_of_file and not table.times:
            raise CollectionError(
                f"lines {line_of_file[file]} and {row.line} of {path} both name {row.file}: put all its labels in one "
                "line, separated by semicolons, or add columns of starts and ends (--start-column and --end-column "
                "name those that are not recognised)."
            )
        line_of_file[file] = row.line
        files.append((row, file))
    return files, missing


def _groups(
    rows: list[_Row], column: str, labels: list[tuple[str, ...]], *, requested: bool
) -> tuple[dict[int, str], list[str]]:
    """Returns the source of the clip in each line (none without a group column), and a note on the column.

    A column that was not requested is not used if it has too few values for every class to be in two parts.
    """
    groups = {row.line: nfc(row.group) for row in rows if row.group.lower() not in ("", "nan")}
    classes = {name for names in labels for name in names}
    if requested or len(set(groups.values())) == len(groups):
        return groups, []
    if len(set(groups.values())) < 2 * len(classes):
        return {}, [f"the column {column} has too few values for sources: use --group-column {column} if it has them"]
    return groups, [f"the column {column} has the source of each clip"]


def _parts(path: str, rows: list[_Row], column: str, fold: str) -> tuple[dict[int, str], str]:
    """Returns the part of every line (none without a split column), and a description of the split."""
    if not column:
        if fold:
            raise CollectionError(f"{path} has no column of folds, but --fold is {fold}: omit it.")
        return {}, ""
    counts = Counter(row.split for row in rows)
    folds = {name: number[1] for name in counts if (number := _FOLD.match(name))}
    parts = part_names(counts)
    expected = max((parts, folds), key=lambda names: sum(counts[name] for name in names))
    if odd := next((row for row in rows if row.split not in expected), None):
        raise CollectionError(
            f"line {odd.line} of {path} has the {column} {odd.split!r}: use train, validation and evaluation, or fold "
            "numbers."
        )
    if expected is parts:
        if fold:
            raise CollectionError(f"the column {column} of {path} has no folds, but --fold is {fold}: omit it.")
        return {row.line: parts[row.split] for row in rows}, f"; split by its column {column}"
    chosen, description = choose_fold(path, folds.values(), fold)
    held_out = {row.line: "evaluation" if folds[row.split] == chosen else "train" for row in rows}
    return held_out, f"; {description}"


def _folds(rows: list[_Row]) -> dict[int, str]:
    """Returns the fold number of every line that has one, from the split column or else from the column ``fold``."""
    for cells in ([row.split for row in rows], [row.fold for row in rows]):
        if found := {row.line: number[1] for row, cell in zip(rows, cells) if (number := _FOLD.match(cell))}:
            return found
    return {}


def choose_fold(path: str, folds: Iterable[str], requested: str) -> tuple[str, str]:
    """Returns the number of the fold for evaluation, the last one if none is requested, and a description.

    Raises:
        CollectionError: there is only one fold, or the requested one does not exist.
    """
    numbers = sorted(set(folds), key=int)
    chosen = requested or numbers[-1]
    if chosen not in numbers:
        raise CollectionError(f"{path} has the folds {', '.join(numbers)}, but --fold is {chosen}: name one of these.")
    if len(numbers) < 2:
        raise CollectionError(f"{path} has only the fold {chosen}: training needs another one.")
    return chosen, f"fold {chosen} of {', '.join(numbers)} is for evaluation"
