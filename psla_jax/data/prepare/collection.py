"""Vocabulary, datafiles and training config for custom recordings with plain class names."""

from __future__ import annotations

import csv
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from psla_jax.audio import decode
from psla_jax.audio.segments import WHOLE, cut, duration, fragment
from psla_jax.data import datafile
from psla_jax.data.datafile import Record
from psla_jax.data.prepare import config_template, sources
from psla_jax.data.prepare.names import spelling_notes
from psla_jax.data.prepare.split import TRAIN, stratified
from psla_jax.data.prepare.walk import check_overwrite, printable_path
from psla_jax.data.validate.findings import format_count
from psla_jax.runtime.files import atomic_text, removed_on_failure
from psla_jax.vocabulary.vocabulary import Vocabulary

VALIDATION, EVALUATION = "validation", "evaluation"
_DEVELOPMENT = ("dev", "development")
PARTS = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", *_DEVELOPMENT), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "evaluate"), EVALUATION),
}
"""Common names of the parts of a split, in lower case; use :func:`part_names` for the names of one data set."""
_MISSING_PART_NOTES = {
    VALIDATION: "there is no validation part, so no best epoch is selected",
    EVALUATION: "there is no evaluation part, so metrics are computed on the clips that the best epoch is selected on",
}
_LABELS, _CONFIG, _EXCLUDED = "class_labels_indices.csv", "config.py", "left_out.csv"
_FILES = (*(f"{part}.json" for part in (TRAIN, VALIDATION, EVALUATION)), _LABELS, _CONFIG, _EXCLUDED)
_DEFAULT_SHARE = 0.1
_MAX_EXAMPLES = 5


class CollectionError(ValueError):
    """Recordings or labels that cannot form a data set; the message names them and the remedy."""


@dataclass(frozen=True)
class Clip:
    """A recording, or a segment of one, with its labels."""

    path: str
    """Absolute path."""
    labels: tuple[str, ...]
    """Names of its classes."""
    part: str = ""
    """``train``, ``validation`` or ``evaluation``; empty if the data set does not specify a part."""
    group: str = ""
    """Source of the recording, if known: a random split puts all clips with the same one into the same part."""
    start: float = WHOLE[0]
    end: float = WHOLE[1]
    """Seconds from the beginning of the recording, if the clip is a segment of it."""
    fold: str = ""
    """Number of its fold in the data set itself, if it has folds."""

    @property
    def is_segment(self) -> bool:
        return (self.start, self.end) != WHOLE

    @property
    def audio(self) -> decode.StrPath:
        """The path or the segment, which :mod:`psla_jax.audio.segments` reads."""
        return cut(self.path, self.start, self.end)

    @property
    def source(self) -> str:
        """The group, or else the recording of a segment; empty for a whole recording without a group."""
        return self.group or (self.path if self.is_segment else "")


AssignFolds = Callable[[Sequence[Clip]], Sequence[str]]
"""Function that returns the fold of every clip."""


@dataclass(frozen=True)
class ExcludedClip:
    """A recording that is not in any datafile."""

    path: str
    reason: str
    """Reason and remedy; continues the sentence that starts with the path, as in ``clip.wav is missing: ...``."""
    is_segment: bool = False
    """Whether it is a segment in a line of a table or label file, whose recording may be used by other lines."""


@dataclass(frozen=True)
class Collection:
    """The recordings of a folder or table."""

    layout: str
    """Description of the recognised layout, for the screen."""
    clips: tuple[Clip, ...]
    exclusive: bool
    """Whether every clip has exactly one class."""
    excluded: tuple[ExcludedClip, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Result of :func:`prepare`. All paths are absolute."""

    layout: str
    """Description of the recognised layout."""
    classes: int
    datafiles: dict[str, str]
    clips: dict[str, int]
    """Datafile and number of clips of each part."""
    labels: str
    """Vocabulary as a label CSV."""
    config: str
    excluded: tuple[ExcludedClip, ...]
    excluded_list: str
    """CSV of the excluded recordings with the reasons; empty if there are none."""
    notes: tuple[str, ...]
    copies: tuple[str, ...] = ()
    """Notes on recordings with identical content."""
    members: tuple[Clip, ...] = ()
    """All clips with their parts, and with the folds that were assigned."""

    def report(self) -> str:
        """Returns the written files and the notes as lines for the screen."""
        lines = [f"layout: {self.layout}"]
        lines += [f"{path}: {format_count(self.clips[part], 'clip')}" for part, path in self.datafiles.items()]
        lines.append(f"{self.labels}: {format_count(self.classes, 'class')}")
        lines += [f"excluded: {printable_path(clip.path)} {clip.reason}" for clip in self.excluded[:_MAX_EXAMPLES]]
        if self.excluded:
            counts = Counter("line" if clip.is_segment else "recording" for clip in self.excluded)
            shown = " and ".join(format_count(count, noun) for noun, count in sorted(counts.items(), reverse=True))
            lines.append(f"excluded: {shown}, all listed in {self.excluded_list}")
        lines += [f"note: {note}" for note in (*self.notes, *self.copies)]
        return "\n".join([*lines, f"to train on it: psla train {shlex.quote(self.config)}"])


def part_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the part that each name of a data set's split stands for, without the names that stand for none.

    A development part is for training if there is no training part, as in DCASE and FSD50K, and else for validation.
    """
    parts = {name: PARTS[name.lower()] for name in names if name.lower() in PARTS}
    if TRAIN not in parts.values() and EVALUATION in parts.values():
        parts |= {name: TRAIN for name in parts if name.lower() in _DEVELOPMENT}
    return parts


def prepare(
    collection: Collection,
    out: str,
    *,
    validation: float | None = None,
    evaluation: float = _DEFAULT_SHARE,
    seed: int = 0,
    force: bool = False,
    assign_folds: AssignFolds | None = None,
    progress: bool = True,
) -> Prepared:
    """Writes vocabulary, datafiles and config; recordings of any rate and format stay where they are.

    Without a predefined split, :func:`psla_jax.data.prepare.split.stratified` splits the clips; sources stay together.

    Args:
        collection: the recordings.
        out: the folder to write to.
        validation: share of clips to select the best epoch on, from the training part of a predefined split without
            validation part; None for 0.1, or 0 with a predefined split.
        evaluation: share of clips to evaluate on if there is no predefined split.
        seed: random seed of the split.
        force: whether to replace existing files.
        assign_folds: returns the fold of every clip; its errors are raised before anything is written.
        progress: show progress on stderr.

    Raises:
        CollectionError, PathError, VocabularyError: there are fewer than two classes, a part would be empty, class
            names cannot be used, or an output file already exists.
    """
    _check_shares(validation, evaluation)
    paths = {name: os.path.join(os.path.abspath(out), name) for name in _FILES}
    check_overwrite(paths.values(), force=force)
    clips, seconds, unreadable = _measure(collection.clips, progress)
    vocabulary = _vocabulary(clips)
    index = {name: i for i, name in enumerate(vocabulary.names)}
    labels = [[index[name] for name in clip.labels] for clip in clips]
    clips, split_notes = _divide(clips, labels, validation, evaluation, seed)
    clips = _with_folds(clips, assign_folds)
    rows = _rows_by_part(clips)
    summary = _summarize(out, rows, labels, seconds, classes=len(vocabulary), exclusive=collection.exclusive)
    excluded = (*collection.excluded, *unreadable)
    notes = (*collection.notes, *spelling_notes(vocabulary.names), *split_notes)
    records = {part: [_record(clips[i], [vocabulary.mids[c] for c in labels[i]]) for i in rows[part]] for part in rows}
    with removed_on_failure(paths.values()):
        _write(paths, vocabulary, records, summary, excluded)
    return Prepared(
        layout=collection.layout,
        classes=len(vocabulary),
        datafiles={part: paths[f"{part}.json"] for part in rows},
        clips=summary.parts,
        labels=paths[_LABELS],
        config=paths[_CONFIG],
        excluded=excluded,
        excluded_list=paths[_EXCLUDED] if excluded else "",
        notes=(*notes, *_missing_part_notes(rows), *_rare_class_notes(vocabulary, labels, rows)),
        copies=tuple(_copy_notes(clips, progress)),
        members=tuple(clips),
    )


def _record(clip: Clip, mids: list[str]) -> Record:
    return Record(clip.path, mids, clip.start, clip.end)


def _summarize(
    out: str,
    rows: dict[str, list[int]],
    labels: list[list[int]],
    seconds: list[float],
    *,
    classes: int,
    exclusive: bool,
) -> config_template.DataSummary:
    return config_template.DataSummary(
        name=os.path.basename(os.path.abspath(out)),
        parts={part: len(chosen) for part, chosen in rows.items()},
        class_sizes=tuple(Counter(c for i in rows[TRAIN] for c in labels[i]).values()),
        classes=classes,
        seconds=tuple(seconds[i] for i in rows[TRAIN]),
        exclusive=exclusive,
    )


def _write(
    paths: dict[str, str],
    vocabulary: Vocabulary,
    records: dict[str, list[Record]],
    summary: config_template.DataSummary,
    excluded: Sequence[ExcludedClip],
) -> None:
    """Writes all files, and removes files of a previous data set that this one does not have."""
    os.makedirs(os.path.dirname(paths[_CONFIG]), exist_ok=True)
    for name in [_EXCLUDED, *(f"{part}.json" for part in (VALIDATION, EVALUATION) if part not in records)]:
        Path(paths[name]).unlink(missing_ok=True)
    vocabulary.write(paths[_LABELS])
    for part in records:
        datafile.write(paths[f"{part}.json"], records[part], exclusive=summary.exclusive)
    if excluded:
        with atomic_text(paths[_EXCLUDED]) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((printable_path(clip.path), clip.reason) for clip in excluded)
    with atomic_text(paths[_CONFIG]) as file:
        file.write(config_template.render_config(summary))


def _check_shares(validation: float | None, evaluation: float) -> None:
    for name, share in (("validation", validation or 0.0), ("evaluation", evaluation)):
        if not 0 <= share < 1:
            raise CollectionError(f"--{name} is {share}: use a share of the clips from 0 to 1, such as 0.1.")
    if (validation or 0.0) + evaluation >= 1:
        shares = f"{validation} and {evaluation}"
        raise CollectionError(f"--validation and --evaluation are {shares}: leave clips to train on.")


def _measure(clips: Sequence[Clip], progress: bool) -> tuple[list[Clip], list[float], list[ExcludedClip]]:
    """Returns the readable clips sorted by path and start, their lengths in seconds, and the unreadable clips."""

    def measure(clip: Clip) -> float | ExcludedClip:
        try:
            return duration(clip.audio)
        except decode.AudioError as error:
            return ExcludedClip(os.fspath(clip.audio), error.reason, clip.is_segment)

    ordered = sorted(clips, key=lambda clip: (clip.path, clip.start, clip.end))
    lengths = decode.in_threads(measure, ordered, "Measuring recordings", progress=progress)
    clips = [clip for clip, length in zip(ordered, lengths) if isinstance(length, float)]
    unreadable = [length for length in lengths if isinstance(length, ExcludedClip)]
    if not clips:
        raise CollectionError(f"no recording can be used: {printable_path(unreadable[0].path)} {unreadable[0].reason}")
    return clips, [length for length in lengths if isinstance(length, float)], unreadable


def _divide(
    clips: list[Clip], labels: list[list[int]], validation: float | None, evaluation: float, seed: int
) -> tuple[list[Clip], list[str]]:
    """Returns the clips with a part each, and notes about the split and the sources that it keeps together."""
    clips, group_notes = _with_groups(clips)
    clips, notes = _split(clips, labels, validation, evaluation, seed)
    kept = sources.split_notes([clip.source for clip in clips], [clip.part for clip in clips])
    return clips, [*notes, *group_notes, *kept]


def _with_folds(clips: list[Clip], assign_folds: AssignFolds | None) -> list[Clip]:
    if assign_folds is None:
        return clips
    return [replace(clip, fold=fold) for clip, fold in zip(clips, assign_folds(clips), strict=True)]


def _with_groups(clips: list[Clip]) -> tuple[list[Clip], list[str]]:
    """Returns the clips with the sources that file names tell, if none is known, and a note on that."""
    if any(clip.group for clip in clips):
        return clips, []
    data_set, groups = sources.by_file_name([clip.path for clip in clips], [clip.labels for clip in clips])
    notes = [f"the file names are those of {data_set}, and contain the source of each clip"] if data_set else []
    return [replace(clip, group=group) for clip, group in zip(clips, groups)], notes


def _copy_notes(clips: list[Clip], progress: bool) -> Iterator[str]:
    clips = list({clip.path: clip for clip in clips}.values())  # one for all segments of a recording
    paths = [clip.path for clip in clips]
    copies = sources.exact_copies(paths, progress=progress)
    yield from sources.copy_notes(paths, [clip.labels for clip in clips], [clip.part for clip in clips], copies)


def _vocabulary(clips: Sequence[Clip]) -> Vocabulary:
    """Returns the classes sorted by name; a mid is the name with ``;`` for ``,``, which separates mids in datafiles."""
    names = sorted({name for clip in clips for name in clip.labels})
    if len(names) < 2:
        only = f"only the class {names[0]}" if names else "no class"
        raise CollectionError(f"there is {only}: a model needs at least two classes to distinguish.")
    return Vocabulary(tuple(name.replace(",", ";") for name in names), tuple(names))


def _split(
    clips: list[Clip], labels: list[list[int]], validation: float | None, evaluation: float, seed: int
) -> tuple[list[Clip], list[str]]:
    """Returns the clips with a part each, and notes about the split."""
    predefined = {clip.part for clip in clips} - {""}
    if len(predefined) > 1:
        if TRAIN not in predefined:
            raise CollectionError("the split has no training part: name one train, training or tr.")
        if validation and VALIDATION not in predefined:
            chosen = [i for i, clip in enumerate(clips) if clip.part == TRAIN]
            return _stratify(clips, labels, chosen, {VALIDATION: validation}, seed), []
        return clips, []
    shares = {EVALUATION: evaluation, VALIDATION: _DEFAULT_SHARE if validation is None else validation}
    shares = {part: share for part, share in shares.items() if share}
    if not shares:
        raise CollectionError("--validation and --evaluation are both 0: training needs held-out clips.")
    notes = [f"all clips are in the part {part} of the split, so they are split again" for part in predefined]
    return _stratify(clips, labels, list(range(len(clips))), shares, seed), notes


def _rows_by_part(clips: list[Clip]) -> dict[str, list[int]]:
    """Returns the indices of the clips in each part that is not empty."""
    rows = {part: [i for i, clip in enumerate(clips) if clip.part == part] for part in (TRAIN, VALIDATION, EVALUATION)}
    if not rows[TRAIN] or len(rows[TRAIN]) == len(clips):
        raise CollectionError("no class has two clips, one to train on and one to evaluate on: record more of each.")
    return {part: chosen for part, chosen in rows.items() if chosen}


def _stratify(
    clips: list[Clip], labels: list[list[int]], chosen: list[int], shares: dict[str, float], seed: int
) -> list[Clip]:
    """Returns the clips with new parts for the chosen ones, which do not change when the common folder moves.

    Segments of a recording have the same part, unless there are too few recordings for that.
    """
    root = os.path.commonpath([os.path.dirname(clips[i].path) for i in chosen])
    names = [os.path.relpath(clips[i].path, root).replace(os.sep, "/") for i in chosen]
    groups = [clips[i].group or name for i, name in zip(chosen, names)]
    chosen_labels = [labels[i] for i in chosen]
    assigned = stratified(names, chosen_labels, shares, seed=seed, groups=groups)
    if set(assigned) == {TRAIN}:
        segment_names = [name + fragment(clips[i].start, clips[i].end) for i, name in zip(chosen, names)]
        assigned = stratified(segment_names, chosen_labels, shares, seed=seed)
    parts = dict(zip(chosen, assigned))
    return [replace(clip, part=parts.get(i, clip.part)) for i, clip in enumerate(clips)]


def _missing_part_notes(rows: dict[str, list[int]]) -> list[str]:
    return [note for part, note in _MISSING_PART_NOTES.items() if part not in rows]


def _rare_class_notes(vocabulary: Vocabulary, labels: list[list[int]], rows: dict[str, list[int]]) -> Iterator[str]:
    """Yields a sentence for each group of classes that cannot be learned or evaluated."""
    counts = {part: Counter(c for i in chosen for c in labels[i]) for part, chosen in rows.items()}
    total = Counter(c for clip in labels for c in clip)
    classes = range(len(vocabulary))
    groups = {
        "only one clip, which is used for training or for evaluation, not both": [c for c in classes if total[c] == 1],
        "no training clip, and cannot be learned": [c for c in classes if not counts[TRAIN][c]],
    }
    for part in [part for part in counts if part != TRAIN]:
        absent = [c for c in classes if total[c] > 1 and not counts[part][c]]
        groups[f"no {part} clip, and is not evaluated there"] = absent
    for description, group in groups.items():
        names = ", ".join(vocabulary.names[c] for c in group[:_MAX_EXAMPLES])
        if len(group) == 1:
            yield f"the class {names} has {description}"
        elif group:
            yield f"each of {len(group)} classes has {description}: {names}{', ...' * (len(group) > _MAX_EXAMPLES)}"
