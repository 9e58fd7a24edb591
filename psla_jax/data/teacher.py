"""A teacher's scores of the training clips (``distill.teacher``), memory-mapped in float16 and shared by processes.

The scores of a file are matched to the clips by clip id and to the classes by mid, and written once to a directory with
one row per training clip. A clip or class that the teacher lacks has its label in place of a score.

The scores are those of the clip without augmentation. They are exact for the student's input where augmentation keeps
all of the sound: masks, gain, shifts. For mixes, scores are mixed with the weights of the waveforms, which is the loss
of both clips with these weights, and not the teacher's score of the mix. For parts of clips (``crop``, or an input of
the student that is shorter than that of the teacher), they are those of the whole clip, and background noise does not
enter them. ``psla teach`` and ``distill.model`` score the augmented input itself.

This module does not import JAX.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.config_distill import DistillConfig
from psla_jax.data.clip_ids import ClipIdError, match, require_distinct
from psla_jax.data.datafile import Datafile
from psla_jax.data.score_arrays import HDF5_SUFFIXES, ScoreArrayError, read_blocks, read_texts
from psla_jax.vocabulary.vocabulary import BUNDLED, Vocabulary, VocabularyError

FIELD = "distill.teacher"
SCORES, META = "scores.npy", "meta.json"
EPSILON = 1e-7
"""Scores are clipped to [EPSILON, 1 - EPSILON] before they are converted to logits, as in the loss."""
TOLERANCE = 0.1
"""Distance from [0, 1] up to which scores are clipped to it. Those of attention heads may lie slightly outside."""


class TeacherError(ValueError):
    """Scores of a teacher that cannot be used; the message names the setting, the file and the remedy."""


@dataclass(frozen=True)
class TeacherScores:
    """Softened scores of every training clip, memory-mapped. Its pickled copy is only the path."""

    directory: str

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}

    @functools.cached_property
    def _scores(self) -> np.ndarray:
        # A view as a plain array of the same memory: indexing a memmap is several times slower.
        return np.load(os.path.join(self.directory, SCORES), mmap_mode="r").view(np.ndarray)

    def __getitem__(self, clip: int) -> np.ndarray:
        """Returns the scores of a clip as float32 ``(classes,)``."""
        return self._scores[clip].astype(np.float32)

    def __len__(self) -> int:
        return len(self._scores)

    def notes(self) -> list[str]:
        """Returns sentences on how the scores were matched."""
        return json.loads(Path(self.directory, META).read_text(encoding="utf-8"))["notes"]


def identity(config: DistillConfig) -> Mapping[str, Any]:
    """Returns the hash of the teacher's file, to detect whether it has changed when a run is resumed.

    It is empty without a teacher. Raises TeacherError if there is no such file.
    """
    if not config.teacher:
        return {}
    try:
        with open(config.teacher, "rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise TeacherError(
            f"{FIELD} is {config.teacher!r}, which cannot be read ({error.strerror}): name scores of the training "
            "clips, as psla evaluate --save writes them."
        ) from error


def soften(scores: np.ndarray, temperature: float, *, exclusive: bool, logits: bool) -> np.ndarray:
    """Returns float32 scores in [0, 1] whose logits are divided by a temperature.

    With exclusive classes, they are a distribution over the classes: the softmax of the logits, or of the logarithms of
    the scores, divided by the temperature; else the sigmoid.

    Args:
        scores: ``(clips, classes)`` scores in [0, 1], or logits.
        temperature: the temperature; 1 leaves scores in [0, 1] as they are, except for exclusive classes, whose sum
            becomes 1.
        exclusive: whether every clip has exactly one class.
        logits: whether `scores` are logits.
    """
    values: np.ndarray = np.asarray(scores, np.float32)
    if not logits:
        values = np.clip(values, 0.0, 1.0)
    if exclusive:
        values = (values if logits else np.log(np.maximum(values, EPSILON))) / np.float32(temperature)
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    if not logits:
        if temperature == 1:
            return values
        values = np.clip(values, EPSILON, 1 - EPSILON)
        values = np.log(values) - np.log1p(-values)
    # The hyperbolic tangent does not overflow.
    return 0.5 + 0.5 * np.tanh(0.5 * values / np.float32(temperature))


def prepare(
    config: DistillConfig, sha256: str, data: Datafile, vocabulary: Vocabulary, *, exclusive: bool, directory: Path
) -> TeacherScores:
    """Returns the scores of the clips of a datafile, which are written to a subdirectory of `directory` if necessary.

    Args:
        config: the file and its layout.
        sha256: that of :func:`identity`.
        data: the training set.
        vocabulary: its classes.
        exclusive: whether every clip has exactly one class.
        directory: where to write; one directory serves any number of teachers and data sets.

    Raises:
        TeacherError: the file has no such arrays, none of the clips or classes, or scores that are not finite or not in
            [0, 1].
    """
    layout = [config.teacher, config.temperature, config.logits, config.scores, config.clips, config.mids]
    content = [*layout, sha256, data.sha256, len(data), data.source, data.root, vocabulary.mids, exclusive]
    digest = hashlib.sha256(json.dumps(content).encode())
    digest.update(data.label_indices.tobytes())
    target = directory.absolute() / f"teacher-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        _write(target, config, data, vocabulary, exclusive)
    return TeacherScores(str(target))


def _write(target: Path, config: DistillConfig, data: Datafile, vocabulary: Vocabulary, exclusive: bool) -> None:
    """Writes the directory of a :class:`TeacherScores`, which appears complete or not at all."""
    clips, mids = _clips(config), _mids(config)
    rows, notes = _match_clips(config, clips, data)
    columns, class_notes = _match_classes(config, mids, vocabulary)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    temporary.mkdir(parents=True)
    try:
        shape = (len(data), len(vocabulary))
        stored = np.lib.format.open_memmap(temporary / SCORES, mode="w+", dtype=np.float16, shape=shape)
        # The labels, of which scores replace those that the teacher has.
        stored[np.repeat(np.arange(len(data)), np.diff(data.label_offsets)), data.label_indices] = 1
        _fill(stored, config, rows, columns, len(clips), len(mids), exclusive)
        stored.flush()
        (temporary / META).write_text(json.dumps({"notes": [*notes, *class_notes]}), encoding="utf-8")
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():  # Otherwise another process has written the same scores in the meantime.
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    stored: np.ndarray,
    config: DistillConfig,
    rows: np.ndarray,
    columns: np.ndarray,
    num_clips: int,
    num_classes: int,
    exclusive: bool,
) -> None:
    """Fills in the scores of the file: `rows` are those of the clips in the file, -1 for none, `columns` of classes."""
    clips = np.argsort(rows, kind="stable")
    clips, known = clips[rows[clips] >= 0], np.flatnonzero(columns >= 0)
    sorted_rows, first, within = rows[clips], 0, True
    for block in _blocks(config, num_classes):
        of_block = clips[slice(*np.searchsorted(sorted_rows, (first, first + len(block))))]
        values = block[rows[of_block] - first][:, columns[known]]
        _require_scores(config, values, rows[of_block])
        within &= bool(((values >= 0) & (values <= 1)).all())
        soft = soften(values, config.temperature, exclusive=exclusive, logits=config.logits)
        if exclusive:  # A clip whose only class the teacher lacks keeps its label.
            taught = stored[of_block][:, known].any(axis=1)
            of_block, soft = of_block[taught], soft[taught]
        stored[np.ix_(of_block, known)] = soft
        first += len(block)
    if config.logits and within:
        raise TeacherError(
            f"{FIELD} is {config.teacher!r}, whose values are all in [0, 1], as scores are: use --distill.logits False."
        )
    if first != num_clips:
        raise TeacherError(
            f"{FIELD} is {config.teacher!r} with {first:,} rows of scores, but there are {num_clips:,} clip ids "
            f"(distill.clips {' '.join(config.clips)}): name the ids of exactly its rows, in their order."
        )


def _blocks(config: DistillConfig, num_classes: int) -> Iterator[np.ndarray]:
    try:
        for block in read_blocks(Path(config.teacher), config.scores):
            if block.dtype.kind != "f" or block.ndim != 2 or block.shape[1] != num_classes:
                raise TeacherError(
                    f"{FIELD} is {config.teacher!r}, whose scores are {block.dtype} with {block.shape[1:]} values per "
                    f"clip, and it has {num_classes} mids (distill.mids {config.mids}): give floats (clips, classes)."
                )
            yield block
    except ScoreArrayError as error:
        raise TeacherError(f"{FIELD}: {error}: name its array of scores with distill.scores.") from error


def _require_scores(config: DistillConfig, values: np.ndarray, rows: np.ndarray) -> None:
    """Raises TeacherError unless all values are finite, and without `logits` close to [0, 1]."""
    invalid = ~np.isfinite(values)
    if not config.logits:
        with np.errstate(invalid="ignore"):
            invalid |= (values < -TOLERANCE) | (values > 1 + TOLERANCE)
    if invalid.any():
        row, column = np.argwhere(invalid)[0]
        value = values[row, column]
        remedy = "compute the scores again with an intact model"
        if np.isfinite(value):
            remedy = "use --distill.logits True if these are logits, or give scores in [0, 1]"
        raise TeacherError(f"{FIELD} is {config.teacher!r}, which has the value {value} in row {rows[row]}: {remedy}.")


# ---- clips and classes of the file


def _match_clips(config: DistillConfig, clips: list[str], data: Datafile) -> tuple[np.ndarray, list[str]]:
    """Returns the row of every training clip in the file, -1 for none, and notes."""
    try:
        require_distinct(clips, config.teacher)
    except ClipIdError as error:
        raise TeacherError(f"{FIELD}: {error}") from error
    ids = [os.path.normpath(data.clip_id(clip)) for clip in range(len(data))]
    distinct = {name: number for number, name in enumerate(dict.fromkeys(ids))}  # A training set may repeat clips.
    matching = match(list(distinct), clips)
    positions = np.maximum(matching.positions, -1)
    rows = positions[[distinct[name] for name in ids]]
    if not matching.num_matched:
        raise TeacherError(
            f"{FIELD} is {config.teacher!r}, which has none of the {len(ids):,} training clips, such as {ids[0]}, "
            f"among its {len(clips):,}{f', such as {clips[0]}' if clips else ''}: name scores of the training set."
        )
    missing = np.flatnonzero(rows < 0)
    notes = [f"teacher {config.teacher}: scores of {len(ids) - len(missing):,} of {len(ids):,} training clips"]
    if len(missing):
        notes.append(f"clips without teacher, for which labels stand in: {len(missing):,}, such as {ids[missing[0]]}")
    return rows, notes


def _match_classes(
    config: DistillConfig, mids: tuple[str, ...], vocabulary: Vocabulary
) -> tuple[np.ndarray, list[str]]:
    """Returns the column of every class in the file, -1 for none, and notes."""
    indices = {mid: column for column, mid in enumerate(mids)}
    columns = np.array([indices.get(mid, -1) for mid in vocabulary.mids])
    missing = np.flatnonzero(columns < 0)
    if len(missing) == len(vocabulary):
        raise TeacherError(
            f"{FIELD} is {config.teacher!r}, which has none of the {len(vocabulary)} classes, such as "
            f"{vocabulary.mids[0]!r}, but {len(mids)} others: name a teacher of these classes."
        )
    if not len(missing):
        return columns, []
    example = vocabulary.mids[missing[0]]
    return columns, [f"classes without teacher, for which labels stand in: {len(missing)}, such as {example}"]


def _clips(config: DistillConfig) -> list[str]:
    return [text for source in config.clips for text in _texts(config, source, "distill.clips")]


def _mids(config: DistillConfig) -> tuple[str, ...]:
    if config.mids in BUNDLED or os.path.isfile(config.mids):
        try:
            return Vocabulary.read(config.mids).mids
        except VocabularyError as error:
            raise TeacherError(f"distill.mids: {error}") from error
    mids = tuple(_texts(config, config.mids, "distill.mids"))
    if len(set(mids)) < len(mids):
        raise TeacherError(f"{FIELD} is {config.teacher!r}, which lists a mid twice: give every class one column.")
    return mids


def _texts(config: DistillConfig, source: str, field: str) -> list[str]:
    """Returns an array of the teacher's file, of another file ``FILE:ARRAY``, or the lines of a text file."""
    file, _, name = source.rpartition(":")
    try:
        if file and os.path.isfile(file):
            return read_texts(Path(file), name)
        if os.path.isfile(source):
            if source.endswith(".npy"):
                return read_texts(Path(source), "")
            return Path(source).read_text(encoding="utf-8").splitlines()
        if config.teacher.endswith(".npy"):
            raise ScoreArrayError(f"{config.teacher} has a single array and there is no file {source}")
        return read_texts(Path(config.teacher), source)
    except (ScoreArrayError, OSError, UnicodeDecodeError) as error:
        raise TeacherError(
            f"{field} is {source!r}: {error}: name an array of {config.teacher}, a file, or FILE:ARRAY of an .npz or "
            f"{HDF5_SUFFIXES[0]} file."
        ) from error
