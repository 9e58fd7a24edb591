"""Scores from wherever they are, laid beside the clips of a datafile by clip id, never by position.

A file of scores is an ``.npz`` as runs and ``psla evaluate --save`` write them, in which every clip has its path, or
the reference's CSV, a line of scores for every clip, which has no ids: there alone order is trusted, and that is said.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psla_jax.data.clips import Matching, match, require_distinct
from psla_jax.data.datafile import Datafile
from psla_jax.files import DAMAGE
from psla_jax.labeling import ClipScores, Labels
from psla_jax.ontology import Vocabulary
from psla_jax.scores import ScoresError

SCORES, LABELS = "scores", "labels.csv"
"""Where a run directory has its scores, and the classes of their columns."""
_BEST_FIRST = ("crossfit", "ensemble", "average")
_BLOCK = 8192
"""Clips looked through at a time."""
_AGREEMENT = 0.5
"""Share of the labels kept with scores that have to be in the datafile: with other classes, next to none are."""


@dataclass(frozen=True)
class Found:
    """Scores of the clips of a datafile.

    Attributes:
        scores: what the rules of enhancement take.
        notes: how they were found, in sentences.
    """

    scores: ClipScores
    notes: tuple[str, ...]


def read(path: str, data: Datafile, vocabulary: Vocabulary) -> Found:
    """The scores of the clips of a datafile, from a file of scores or a run directory that has them.

    Raises:
        ScoresError, ClipIdError: the file is missing or no such file; it has NaN in it, other classes than the
            vocabulary, or no clip of the datafile; two clips have one id.
    """
    wavs = [data.clip_id(clip) for clip in range(len(data))]
    require_distinct(wavs, data.source)
    file = _file_of_run(Path(path), wavs, data.source) if os.path.isdir(path) else Path(path)
    if not file.is_file():
        raise ScoresError(f"there are no scores at {path}: name an .npz, a CSV or a run directory.")
    if zipfile.is_zipfile(file):
        return _from_npz(file, data, vocabulary, wavs)
    return _from_table(file, data, vocabulary)


# ---- an .npz, with ids


def _from_npz(file: Path, data: Datafile, vocabulary: Vocabulary, wavs: list[str]) -> Found:
    clips, values, mids, kept = _load(file)
    require_distinct(clips, str(file))
    values = _in_order_of(vocabulary, values, mids, file)
    _require_finite(values, vocabulary, file, clips)
    matching = match(wavs, clips)
    if not matching.found():
        raise ScoresError(
            f"none of the {len(wavs):,} clips of {data.source}, such as {wavs[0]}, is among the {len(clips):,} of "
            f"{file}{f', such as {clips[0]}' if clips else ''}: name scores of this datafile."
        )
    scores = ClipScores(values, np.maximum(matching.places, -1))
    if not mids and kept is not None:
        _require_agreement(Labels.of(data), scores, kept, file)
    return Found(scores, tuple(_notes(file, matching, wavs)))


def _load(file: Path) -> tuple[list[str], np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Clip ids, scores, the classes if they are known, and the labels that were kept with the scores if there are."""
    try:
        with np.load(file, allow_pickle=False) as content:
            clips, values = content["clips"], content["scores"]
            mids = tuple(map(str, content["mids"].tolist())) if "mids" in content else ()
            kept = content["labels"] if "labels" in content and not mids else None
    except DAMAGE as error:
        raise ScoresError(
            f"{file} does not hold scores ({error}): it needs the arrays clips and scores, as psla evaluate --save "
            "writes them."
        ) from error
    if values.ndim != 2 or clips.shape != values.shape[:1] or values.dtype.kind != "f":
        raise ScoresError(
            f"{file} has clips of shape {clips.shape} and {values.dtype} scores of shape {values.shape}: they must be "
            "(clips,) and floats (clips, classes)."
        )
    if not mids and file.parent.name == SCORES and (file.parent.parent / LABELS).is_file():
        mids = Vocabulary.read(file.parent.parent / LABELS).mids
    return list(map(str, clips.tolist())), values, mids, kept


def _in_order_of(vocabulary: Vocabulary, values: np.ndarray, mids: tuple[str, ...], file: Path) -> np.ndarray:
    """The columns in the order of the vocabulary; where the classes of a file are not known, their number has to do."""
    if values.shape[1] != (len(mids) or len(vocabulary)):
        raise ScoresError(
            f"{file} has scores of {values.shape[1]} classes, and {'it names' if mids else 'the label file has'} "
            f"{len(mids) or len(vocabulary)}: name the scores of a model with these classes."
        )
    if not mids or mids == vocabulary.mids:
        return values
    columns = {mid: column for column, mid in enumerate(mids)}
    lacking = [mid for mid in vocabulary.mids if mid not in columns]
    if lacking:
        raise ScoresError(
            f"{file} has the scores of another set of classes, without {len(lacking)} of the {len(vocabulary)}, such "
            f"as {lacking[0]!r}: name the scores of a model with these classes."
        )
    return values[:, [columns[mid] for mid in vocabulary.mids]]


def _require_finite(values: np.ndarray, vocabulary: Vocabulary, file: Path, clips: list[str] | None = None) -> None:
    for start in range(0, len(values), _BLOCK):
        bad = np.argwhere(~np.isfinite(values[start : start + _BLOCK]))
        if len(bad):
            row, column = start + bad[0][0], bad[0][1]
            raise ScoresError(
                f"{file} has the score {values[row, column]} for {vocabulary.mids[column]} of "
                f"{clips[row] if clips else f'row {row}'}: score the clips again with a model that is sound."
            )


def _require_agreement(labels: Labels, scores: ClipScores, kept: np.ndarray, file: Path) -> None:
    """Raises ScoresError if the labels kept with the scores are not those of the datafile: then the classes are not."""
    if kept.shape != scores.values.shape:
        raise ScoresError(
            f"{file} has labels of shape {kept.shape} for scores of shape {scores.values.shape}: score the clips again."
        )
    clips = np.flatnonzero(scores.rows >= 0)
    total = agreeing = 0
    for start in range(0, len(clips), _BLOCK):
        block = clips[start : start + _BLOCK]
        row, column = np.nonzero(kept[scores.rows[block]] > 0.5)
        total += len(row)
        agreeing += int(labels.has(block[row] * labels.num_classes + column).sum())
    if agreeing < _AGREEMENT * total:
        raise ScoresError(
            f"of the {total:,} labels kept in {file}, {agreeing:,} are in the datafile: its classes are others, or in "
            "another order; score the clips again with psla evaluate --save."
        )


def _notes(file: Path, matching: Matching, wavs: list[str]) -> list[str]:
    """What was matched how, and what was not."""
    lines = [f"{file}: scores of {matching.found():,} of {len(wavs):,} clips, matched {matching.ways()}"]
    unscored = {"without scores": matching.missing(), "ambiguous, as other clips have their name": matching.ambiguous()}
    for why, clips in unscored.items():
        if len(clips):
            lines.append(f"{why}, so that labels stay as they are: {len(clips):,} clips, such as {wavs[clips[0]]}")
    return lines


# ---- the reference's table, without ids


def _from_table(file: Path, data: Datafile, vocabulary: Vocabulary) -> Found:
    if not file.stat().st_size:
        raise ScoresError(f"{file} is empty: score the clips again.")
    try:
        values = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".;: ")
        raise ScoresError(
            f"{file} is neither an .npz nor a CSV of numbers ({reason}): name scores as psla evaluate --save writes "
            "them, or the reference's predictions.csv."
        ) from error
    if values.shape != (len(data), len(vocabulary)):
        raise ScoresError(
            f"{file} has {values.shape[0]:,} rows and {values.shape[1]} columns, and there are {len(data):,} clips in "
            f"{data.source} and {len(vocabulary)} classes: without clip ids there must be a row for every clip."
        )
    _require_finite(values, vocabulary, file)
    notes = (f"{file} has no clip ids: row i is taken for clip i of the datafile, so its order is trusted",)
    return Found(ClipScores(values, np.arange(len(data))), notes)


# ---- a run directory


def _file_of_run(directory: Path, wavs: list[str], source: str) -> Path:
    """The scores of a run that are of the most clips; an ensemble's before an average's before those of an epoch."""
    latest_first = sorted((directory / SCORES).glob("*.npz"), reverse=True)
    of_set: dict[str, Path] = {}  # the files of one set have the same clips
    for file in sorted(latest_first, key=_rank):
        of_set.setdefault(file.stem.partition("_")[0], file)
    found = {file: match(wavs, _clips(file)).found() for file in of_set.values()}
    best = max(found, key=lambda file: found[file], default=None)
    if best is None or not found[best]:
        raise ScoresError(
            f"{directory} has no scores of the clips of {source}: make them with psla evaluate {directory} --data "
            f"{source} --save S.npz, and name S.npz."
        )
    return best


def _rank(file: Path) -> int:
    name = file.stem.partition("_")[2]
    return _BEST_FIRST.index(name) if name in _BEST_FIRST else len(_BEST_FIRST)


def _clips(file: Path) -> list[str]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return list(map(str, content["clips"].tolist()))
    except DAMAGE as error:
        raise ScoresError(f"{file} does not hold scores ({error}): delete it and run again.") from error
