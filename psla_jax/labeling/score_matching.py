"""Scores from a file or run directory, assigned to the clips of a datafile by clip id.

A score file is an ``.npz`` with clip paths, as written by training runs and ``psla evaluate --save``, or the
reference's CSV with one row of scores per clip. The CSV has no clip ids, so its rows are assumed to be in the order of
the datafile, and a note says so.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psla_jax.data.clip_ids import Matching, match, require_distinct
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.scores import ScoresError
from psla_jax.labeling.rules import ClipScores, Labels
from psla_jax.runtime.files import NPZ_ERRORS
from psla_jax.vocabulary.vocabulary import Vocabulary

SCORES, LABELS = "scores", "labels.csv"
"""Score folder and label file of a run directory."""
_PREFERENCE = ("crossfit", "ensemble", "average")
"""Preferred scores of a run, best first; these are preferred to the scores of an epoch."""
_BLOCK = 8192
"""Number of clips checked at a time."""
_MIN_AGREEMENT = 0.5
"""Minimum share of the labels in a score file that must be in the datafile; with other classes, it is close to 0."""


@dataclass(frozen=True)
class MatchedScores:
    """Scores of the clips of a datafile, and notes on the file and the matching, one sentence each."""

    scores: ClipScores
    notes: tuple[str, ...]


def read(path: str, data: Datafile, vocabulary: Vocabulary) -> MatchedScores:
    """Reads the scores of the clips of a datafile from a score file or a run directory.

    Raises:
        ScoresError, ClipIdError: the file is missing or not a score file, its scores are not finite, it has other
            classes than the vocabulary or no clip of the datafile, or two clips have the same id.
    """
    wavs = [data.clip_id(clip) for clip in range(len(data))]
    require_distinct(wavs, data.source)
    file = _file_of_run(Path(path), wavs, data.source) if os.path.isdir(path) else Path(path)
    if not file.is_file():
        raise ScoresError(f"there are no scores at {path}: name an .npz, a CSV or a run directory.")
    if zipfile.is_zipfile(file):
        return _from_npz(file, data, vocabulary, wavs)
    return _from_csv(file, data, vocabulary)


# ---- .npz with clip ids


def _from_npz(file: Path, data: Datafile, vocabulary: Vocabulary, wavs: list[str]) -> MatchedScores:
    clips, values, mids, saved_labels = _load(file)
    require_distinct(clips, str(file))
    values = _reorder_columns(values, mids, vocabulary, file)
    _check_finite(values, vocabulary, file, clips)
    matching = match(wavs, clips)
    if not matching.num_matched:
        raise ScoresError(
            f"none of the {len(wavs):,} clips of {data.source}, such as {wavs[0]}, is among the {len(clips):,} of "
            f"{file}{f', such as {clips[0]}' if clips else ''}: name scores of this datafile."
        )
    scores = ClipScores(values, np.maximum(matching.positions, -1))
    if not mids and saved_labels is not None:
        _check_agreement(Labels.from_datafile(data), scores, saved_labels, file)
    return MatchedScores(scores, tuple(_notes(file, matching, wavs)))


def _load(file: Path) -> tuple[list[str], np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Returns clip ids, scores, mids (empty if unknown), and the labels in the file (None if unneeded or absent)."""
    try:
        with np.load(file, allow_pickle=False) as content:
            clips, values = content["clips"], content["scores"]
            mids = tuple(map(str, content["mids"].tolist())) if "mids" in content else ()
            saved_labels = content["labels"] if "labels" in content and not mids else None
    except NPZ_ERRORS as error:
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
    return list(map(str, clips.tolist())), values, mids, saved_labels


def _reorder_columns(values: np.ndarray, mids: tuple[str, ...], vocabulary: Vocabulary, file: Path) -> np.ndarray:
    """Returns the columns in the order of the vocabulary; without mids, only their number can be checked."""
    if values.shape[1] != (len(mids) or len(vocabulary)):
        raise ScoresError(
            f"{file} has scores of {values.shape[1]} classes, and {'it names' if mids else 'the label file has'} "
            f"{len(mids) or len(vocabulary)}: name the scores of a model with these classes."
        )
    if not mids or mids == vocabulary.mids:
        return values
    columns = {mid: column for column, mid in enumerate(mids)}
    missing = [mid for mid in vocabulary.mids if mid not in columns]
    if missing:
        lacks = f"without {len(missing)} of the {len(vocabulary)}, such as {missing[0]!r}"
        remedy = "name the scores of a model with these classes."
        raise ScoresError(f"{file} has scores of a different set of classes, {lacks}: {remedy}")
    return values[:, [columns[mid] for mid in vocabulary.mids]]


def _check_finite(values: np.ndarray, vocabulary: Vocabulary, file: Path, clips: list[str] | None = None) -> None:
    for start in range(0, len(values), _BLOCK):
        invalid = np.argwhere(~np.isfinite(values[start : start + _BLOCK]))
        if len(invalid):
            row, column = start + invalid[0][0], invalid[0][1]
            score = f"{values[row, column]} for {vocabulary.mids[column]} of {clips[row] if clips else f'row {row}'}"
            raise ScoresError(f"{file} has the score {score}: compute the scores again with an intact model.")


def _check_agreement(labels: Labels, scores: ClipScores, saved_labels: np.ndarray, file: Path) -> None:
    """Raises ScoresError if the labels saved with the scores contradict the datafile, as with another class order."""
    if saved_labels.shape != scores.values.shape:
        shapes = f"labels of shape {saved_labels.shape} for scores of shape {scores.values.shape}"
        raise ScoresError(f"{file} has {shapes}: compute the scores again.")
    clips = np.flatnonzero(scores.rows >= 0)
    total = agreeing = 0
    for start in range(0, len(clips), _BLOCK):
        block = clips[start : start + _BLOCK]
        row, column = np.nonzero(saved_labels[scores.rows[block]] > 0.5)
        total += len(row)
        agreeing += int(labels.has(block[row] * labels.num_classes + column).sum())
    if agreeing < _MIN_AGREEMENT * total:
        raise ScoresError(
            f"of the {total:,} labels in {file}, only {agreeing:,} are in the datafile, so its classes or their order "
            "differ: compute the scores again with psla evaluate --save."
        )


def _notes(file: Path, matching: Matching, wavs: list[str]) -> list[str]:
    lines = [f"{file}: scores of {matching.num_matched:,} of {len(wavs):,} clips, matched {matching.summary()}"]
    ambiguous = "ambiguous because other clips share their name"
    for reason, clips in {"no scores": matching.missing(), ambiguous: matching.ambiguous()}.items():
        if len(clips):
            lines.append(f"{reason}, labels unchanged: {len(clips):,} clips, such as {wavs[clips[0]]}")
    return lines


# ---- the reference's CSV, without clip ids


def _from_csv(file: Path, data: Datafile, vocabulary: Vocabulary) -> MatchedScores:
    if not file.stat().st_size:
        raise ScoresError(f"{file} is empty: compute the scores again.")
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
            f"{file} has {values.shape[0]:,} rows and {values.shape[1]} columns, but {data.source} has {len(data):,} "
            f"clips and {len(vocabulary)} classes: a file without clip ids needs one row per clip."
        )
    _check_finite(values, vocabulary, file)
    notes = (f"{file} has no clip ids: row i is assumed to belong to clip i of the datafile",)
    return MatchedScores(ClipScores(values, np.arange(len(data))), notes)


# ---- run directories


def _file_of_run(directory: Path, wavs: list[str], source: str) -> Path:
    """Returns the score file of a run that has the most of the clips; for equal clips, see :data:`_PREFERENCE`."""
    latest_first = sorted((directory / SCORES).glob("*.npz"), reverse=True)
    rank = {name: i for i, name in enumerate(_PREFERENCE)}
    file_of_set: dict[str, Path] = {}  # All files of one set have the same clips.
    for file in sorted(latest_first, key=lambda file: rank.get(file.stem.partition("_")[2], len(rank))):
        file_of_set.setdefault(file.stem.partition("_")[0], file)
    matched = {file: match(wavs, _clips(file)).num_matched for file in file_of_set.values()}
    best = max(matched, key=lambda file: matched[file], default=None)
    if best is None or not matched[best]:
        raise ScoresError(
            f"{directory} has no scores of the clips of {source}: compute them with psla evaluate {directory} --data "
            f"{source} --save S.npz, and name S.npz."
        )
    return best


def _clips(file: Path) -> list[str]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return list(map(str, content["clips"].tolist()))
    except NPZ_ERRORS as error:
        raise ScoresError(f"{file} does not hold scores ({error}): delete it and run again.") from error
