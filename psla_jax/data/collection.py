"""Own recordings with plain class names -> vocabulary, datafiles and a config that trains on them."""

from __future__ import annotations

import csv
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from psla_jax import audio
from psla_jax.data import datafile, recipe
from psla_jax.data.files import require_new, shown
from psla_jax.data.split import TRAIN, stratified
from psla_jax.files import written_aside
from psla_jax.ontology import Vocabulary

VALIDATION, EVALUATION = "validation", "evaluation"
PARTS = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "evaluate"), EVALUATION),
}
"""What people call the parts of a split."""
_LACKING = {
    VALIDATION: "there is no validation part, so no epoch is chosen as the best",
    EVALUATION: "there is no evaluation part, so the figures are of the clips that the best epoch is chosen on",
}
_SHARE = 0.1
_SHOWN = 5


class CollectionError(ValueError):
    """Recordings or labels that make no data set; the message names them and the remedy."""


@dataclass(frozen=True)
class Clip:
    """A recording."""

    path: str
    """Absolute."""
    labels: tuple[str, ...]
    """Names of its classes."""
    part: str = ""
    """``train``, ``validation`` or ``evaluation``; empty where the data set does not say."""


@dataclass(frozen=True)
class LeftOut:
    """A recording that is in no datafile."""

    path: str
    reason: str
    """What is wrong with it and what to do; goes on where the path ends, as in ``clip.wav is missing: ...``."""


@dataclass(frozen=True)
class Collection:
    """Recordings as they were found."""

    layout: str
    """What was recognised, for the screen."""
    clips: tuple[Clip, ...]
    exclusive: bool
    """Whether every clip has exactly one class."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made. All paths are absolute."""

    layout: str
    classes: int
    datafiles: dict[str, str]
    """By part."""
    clips: dict[str, int]
    labels: str
    """The vocabulary as a label CSV."""
    config: str
    left_out: tuple[LeftOut, ...]
    left_out_list: str
    """CSV of what was left out and why; empty if nothing was."""
    notes: tuple[str, ...]

    def report(self) -> str:
        """What was made, and what was noticed, in lines for the screen."""
        lines = [f"layout: {self.layout}"]
        lines += [f"{path}: {self.clips[part]:,} clips" for part, path in self.datafiles.items()]
        lines.append(f"{self.labels}: {self.classes:,} classes")
        lines += [f"left out: {shown(clip.path)} {clip.reason}" for clip in self.left_out[:_SHOWN]]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out):,} recordings, all in {self.left_out_list}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"to train on it: psla train {shlex.quote(self.config)}"])


def prepare(
    found: Collection,
    out: str,
    *,
    validation: float | None = None,
    evaluation: float = _SHARE,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Writes vocabulary, datafiles and config; recordings stay where they are, whatever their rate and format.

    A split that the data set brings is used as it is; otherwise the clips are divided by class, see
    :func:`psla_jax.data.split.stratified`.

    Args:
        found: the recordings.
        out: the folder to write to.
        validation: the share of clips that the best epoch is chosen on. None for a tenth where there is no split, and
            for nothing where there is one; a share of the training part, if the split has no validation part.
        evaluation: the share of clips to evaluate on, where there is no split.
        seed: of the division.
        force: replace files that are there.
        progress: whether to show progress on stderr.

    Raises:
        CollectionError, FilesError, VocabularyError: there are fewer than two classes, a part would be empty, class
            names cannot be used, or a file is there already.
    """
    _require_shares(validation, evaluation)
    files = _Files.under(os.path.abspath(out))
    require_new(files.all(), force=force)
    clips, seconds, broken = _measured(found.clips, progress)
    vocabulary, index = _vocabulary(clips)
    labels = [[index[name] for name in clip.labels] for clip in clips]
    clips, notes = _divided(clips, labels, validation, evaluation, seed)
    rows = _by_part(clips)
    notes += [note for part, note in _LACKING.items() if part not in rows]
    facts = recipe.Facts(
        name=os.path.basename(files.folder),
        parts={part: len(chosen) for part, chosen in rows.items()},
        class_sizes=tuple(Counter(c for i in rows[TRAIN] for c in labels[i]).values()),
        classes=len(vocabulary),
        seconds=tuple(seconds[i] for i in rows[TRAIN]),
        exclusive=found.exclusive,
    )
    left_out = (*found.left_out, *broken)
    records = {part: [(clips[i].path, [vocabulary.mids[c] for c in labels[i]]) for i in rows[part]] for part in rows}
    _write(files, vocabulary, records, facts, left_out)
    return Prepared(
        layout=found.layout,
        classes=len(vocabulary),
        datafiles={part: files.datafiles[part] for part in rows},
        clips=facts.parts,
        labels=files.labels,
        config=files.config,
        left_out=left_out,
        left_out_list=files.left_out if left_out else "",
        notes=(*found.notes, *notes, *_thin_classes(vocabulary, labels, rows)),
    )


@dataclass(frozen=True)
class _Files:
    """The files to write."""

    folder: str
    datafiles: dict[str, str]
    labels: str
    config: str
    left_out: str

    @classmethod
    def under(cls, folder: str) -> _Files:
        datafiles = {part: os.path.join(folder, f"{part}.json") for part in (TRAIN, VALIDATION, EVALUATION)}
        names = ("class_labels_indices.csv", "config.py", "left_out.csv")
        return cls(folder, datafiles, *(os.path.join(folder, name) for name in names))

    def all(self) -> list[str]:
        return [*self.datafiles.values(), self.labels, self.config, self.left_out]


def _write(
    files: _Files,
    vocabulary: Vocabulary,
    records: dict[str, list[tuple[str, list[str]]]],
    facts: recipe.Facts,
    left_out: Sequence[LeftOut],
) -> None:
    """Writes all files; those of an earlier data set that this one does not have are removed."""
    os.makedirs(files.folder, exist_ok=True)
    vocabulary.write(files.labels)
    for part, path in files.datafiles.items():
        if part in records:
            datafile.write(path, records[part], exclusive=facts.exclusive)
        elif os.path.exists(path):
            os.unlink(path)
    if left_out:
        with written_aside(files.left_out) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((shown(clip.path), clip.reason) for clip in left_out)
    elif os.path.exists(files.left_out):
        os.unlink(files.left_out)
    with written_aside(files.config) as file:
        file.write(recipe.config_text(facts))


def _require_shares(validation: float | None, evaluation: float) -> None:
    for name, share in (("validation", validation or 0.0), ("evaluation", evaluation)):
        if not 0 <= share < 1:
            raise CollectionError(f"--{name} is {share}: use a share of the clips from 0 to 1, such as 0.1.")
    if (validation or 0.0) + evaluation >= 1:
        raise CollectionError(
            f"--validation and --evaluation are {validation} and {evaluation}: leave clips to train on."
        )


def _measured(clips: Sequence[Clip], progress: bool) -> tuple[list[Clip], list[float], list[LeftOut]]:
    """The clips whose files can be opened, in the order of their paths, with their lengths; and the others."""

    def measure(clip: Clip) -> float | LeftOut:
        try:
            return audio.duration(clip.path)
        except audio.AudioError as error:
            return LeftOut(clip.path, error.reason)

    ordered = sorted(clips, key=lambda clip: clip.path)
    lengths = audio.in_threads(measure, ordered, "Measuring recordings", progress=progress)
    good = [(clip, length) for clip, length in zip(ordered, lengths) if isinstance(length, float)]
    broken = [length for length in lengths if isinstance(length, LeftOut)]
    if not good:
        raise CollectionError(f"no recording can be used: {shown(broken[0].path)} {broken[0].reason}")
    return [clip for clip, _ in good], [length for _, length in good], broken


def _vocabulary(clips: Sequence[Clip]) -> tuple[Vocabulary, dict[str, int]]:
    """The classes in the order of their names, and the index of each name.

    A mid is the name itself; as datafiles join mids by commas, a comma in it becomes a semicolon there.
    """
    names = sorted({name for clip in clips for name in clip.labels})
    if len(names) < 2:
        only = f"only the class {names[0]}" if names else "no class"
        raise CollectionError(f"there is {only}: give at least two, as a tagger learns to tell them apart.")
    vocabulary = Vocabulary(tuple(name.replace(",", ";") for name in names), tuple(names))
    return vocabulary, {name: i for i, name in enumerate(names)}


def _divided(
    clips: list[Clip], labels: list[list[int]], validation: float | None, evaluation: float, seed: int
) -> tuple[list[Clip], list[str]]:
    """The clips with a part each, and what to say about it."""
    given = {clip.part for clip in clips} - {""}
    if len(given) > 1:
        if TRAIN not in given:
            raise CollectionError("the split has no training part: name one train, training or tr.")
        if validation and VALIDATION not in given:
            chosen = [i for i, clip in enumerate(clips) if clip.part == TRAIN]
            return _dealt(clips, labels, chosen, {VALIDATION: validation}, seed), []
        return clips, []
    shares = {EVALUATION: evaluation, VALIDATION: _SHARE if validation is None else validation}
    shares = {part: share for part, share in shares.items() if share}
    if not shares:
        raise CollectionError("--validation and --evaluation are both 0: a run needs clips to be scored on.")
    note = [f"all clips are in the part {given.pop()} of the split, so they are divided anew"] if given else []
    return _dealt(clips, labels, list(range(len(clips))), shares, seed), note


def _by_part(clips: list[Clip]) -> dict[str, list[int]]:
    """Which clips are in each part that has any."""
    rows = {part: [i for i, clip in enumerate(clips) if clip.part == part] for part in (TRAIN, VALIDATION, EVALUATION)}
    if not rows[TRAIN] or len(rows[TRAIN]) == len(clips):
        raise CollectionError("no class has two clips, one to train on and one to score: record more of each.")
    return {part: chosen for part, chosen in rows.items() if chosen}


def _dealt(
    clips: list[Clip], labels: list[list[int]], chosen: list[int], shares: dict[str, float], seed: int
) -> list[Clip]:
    """The chosen clips divided by class; what is drawn for a clip depends on where it is below all of them."""
    root = os.path.commonpath([os.path.dirname(clips[i].path) for i in chosen])
    names = [os.path.relpath(clips[i].path, root).replace(os.sep, "/") for i in chosen]
    parts = stratified(names, [labels[i] for i in chosen], shares, seed=seed)
    divided = list(clips)
    for i, part in zip(chosen, parts):
        divided[i] = replace(clips[i], part=part)
    return divided


def _thin_classes(vocabulary: Vocabulary, labels: list[list[int]], rows: dict[str, list[int]]) -> Iterator[str]:
    """What cannot be learned or scored, a sentence each."""
    counts = {part: Counter(c for i in chosen for c in labels[i]) for part, chosen in rows.items()}
    total = Counter(c for clip in labels for c in clip)
    every = range(len(vocabulary))
    yield from _about(
        "only one clip, which is trained on or scored, not both", [i for i in every if total[i] == 1], vocabulary
    )
    yield from _about("no training clip, and cannot be learned", [i for i in every if not counts[TRAIN][i]], vocabulary)
    for part in counts:
        absent = [i for i in every if part != TRAIN and total[i] > 1 and not counts[part][i]]
        yield from _about(f"no {part} clip, and is not scored there", absent, vocabulary)


def _about(what: str, classes: list[int], vocabulary: Vocabulary) -> Iterator[str]:
    if len(classes) == 1:
        yield f"the class {vocabulary.names[classes[0]]} has {what}"
    elif classes:
        more = ", ..." if len(classes) > _SHOWN else ""
        names = ", ".join(vocabulary.names[i] for i in classes[:_SHOWN])
        yield f"each of {len(classes)} classes has {what}: {names}{more}"
