"""FSD50K as it is downloaded -> audio at 16 kHz and datafiles (https://zenodo.org/record/4060432)."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import Literal

from psla_jax import audio
from psla_jax.data import datafile
from psla_jax.ontology import Vocabulary, VocabularyError

_DEV, _EVAL = "FSD50K.dev_audio", "FSD50K.eval_audio"
_DOWNLOAD = "download it from https://zenodo.org/record/4060432 and unpack it there"
_WAV_HEADER = 44


class FSD50KError(ValueError):
    """A folder that is not FSD50K, or one that cannot be prepared."""


@dataclass(frozen=True)
class LeftOut:
    """A listed clip that is in no datafile, because its audio gives no waveform."""

    path: str
    reason: str
    """What is wrong with it and what to do; goes on where the path ends, as in ``clip.wav is missing: ...``."""


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made. All paths are absolute."""

    train: str
    validation: str
    evaluation: str
    labels: str
    """The vocabulary as a label CSV."""
    weights: str
    """The clip weights of the training set."""
    train_clips: int
    validation_clips: int
    evaluation_clips: int
    resampled: int
    """Recordings that were resampled this time; those of a run before are kept."""
    left_out: tuple[LeftOut, ...]

    def report(self) -> str:
        """What was made, and what was left out, in lines for the screen."""
        lines = [
            f"{self.train}: {self.train_clips:,} clips",
            f"{self.validation}: {self.validation_clips:,} clips",
            f"{self.evaluation}: {self.evaluation_clips:,} clips",
            f"{self.labels}: the vocabulary; {self.weights}: sampling weights",
            f"{self.resampled:,} recordings resampled now, {len(self.left_out):,} left out",
        ]
        return "\n".join([*lines, *(f"left out: {clip.path} {clip.reason}" for clip in self.left_out)])


@dataclass(frozen=True)
class _Clip:
    name: str
    mids: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class _Recordings:
    """What :func:`_resample` did with the clips of one folder."""

    folder: str
    kept: list[_Clip]
    resampled: int
    left_out: list[LeftOut]


def prepare(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    channel: Literal["mean", "first"] = "mean",
    progress: bool = True,
) -> Prepared:
    """Resamples FSD50K to 16 kHz and writes the reference's datafiles for it.

    Audio goes to ``FSD50K.dev_audio_16k`` and ``FSD50K.eval_audio_16k``, the rest to ``datafiles``. A recording that is
    already there is kept, so an interrupted run is simply started again; the small files are written anew.

    Args:
        directory: holds ``FSD50K.dev_audio``, ``FSD50K.eval_audio`` and ``FSD50K.ground_truth``.
        out: where results go; ``directory`` itself if not given.
        workers: threads; None for a few more than there are cores.
        channel: what becomes of a recording with several channels, see :func:`psla_jax.audio.read`.
        progress: whether to show progress bars on stderr.

    Raises:
        FSD50KError: a folder or table is missing or has another form, a label is not in the data set's vocabulary, a
            set has no clip that can be read, or the results cannot be written. Single recordings that are missing or
            broken are left out instead.
    """
    if workers is not None and workers < 1:
        raise FSD50KError(f"workers is {workers}: use at least one thread.")
    root = os.path.abspath(directory)
    target = root if out is None else os.path.abspath(out)
    vocabulary, dev, held_out = _read_truth(os.path.join(root, "FSD50K.ground_truth"))
    for folder in (_DEV, _EVAL):
        if not os.path.isdir(os.path.join(root, folder)) and not os.path.isdir(os.path.join(target, f"{folder}_16k")):
            raise FSD50KError(f"{root} has no folder {folder}: {_DOWNLOAD}.")
    try:
        recordings = [
            _resample(
                os.path.join(root, folder), os.path.join(target, f"{folder}_16k"), clips, workers, channel, progress
            )
            for folder, clips in ((_DEV, dev), (_EVAL, held_out))
        ]
        return _write_datafiles(os.path.join(target, "datafiles"), vocabulary, *recordings)
    except OSError as error:
        where = error.filename or target
        raise FSD50KError(
            f"{where} cannot be written ({error.strerror}): free some space, or use another folder."
        ) from error


def _read_truth(folder: str) -> tuple[Vocabulary, list[_Clip], list[_Clip]]:
    """The classes, the development clips and the evaluation clips."""
    vocabulary = _read_vocabulary(os.path.join(folder, "vocabulary.csv"))
    dev = _read_clips(os.path.join(folder, "dev.csv"), vocabulary, splits=("train", "val"))
    return vocabulary, dev, _read_clips(os.path.join(folder, "eval.csv"), vocabulary)


def _read_vocabulary(path: str) -> Vocabulary:
    """The classes of ``vocabulary.csv``: lines of index, label, mid without a header."""
    rows = _read_table(path)
    for index, (number, row) in enumerate(rows):
        if len(row) != 3 or row[0].strip() != str(index):
            raise FSD50KError(f"line {number} of {path} is {','.join(row)!r}, not {index},label,mid: {_DOWNLOAD}.")
    try:
        return Vocabulary(tuple(row[2].strip() for _, row in rows), tuple(row[1].strip() for _, row in rows))
    except VocabularyError as error:
        raise FSD50KError(f"{path} cannot be used ({str(error).rstrip('.')}): {_DOWNLOAD}.") from error


def _read_clips(path: str, vocabulary: Vocabulary, splits: tuple[str, ...] = ()) -> list[_Clip]:
    """The clips of ``dev.csv`` (fname, labels, mids, split) or ``eval.csv`` (no split), in the order of the file."""
    (_, header), *rows = _read_table(path)
    wanted = ["fname", "labels", "mids", *(["split"] if splits else [])]
    if header != wanted:
        raise FSD50KError(f"{path} starts with {','.join(header)!r}, not {','.join(wanted)}: {_DOWNLOAD}.")
    clips: dict[str, _Clip] = {}
    for number, row in rows:
        if len(row) != len(wanted) or (splits and row[3] not in splits):
            raise FSD50KError(f"line {number} of {path} is {','.join(row)!r}, not {','.join(wanted)}: {_DOWNLOAD}.")
        clip = _Clip(row[0], tuple(mid.strip() for mid in row[2].split(",") if mid.strip()), row[3] if splits else "")
        unknown = [mid for mid in clip.mids if mid not in vocabulary]
        if unknown:
            raise FSD50KError(
                f"clip {clip.name} in {path} has the mid {unknown[0]!r}, which vocabulary.csv lacks: {_DOWNLOAD}."
            )
        if clip.name in clips:
            raise FSD50KError(f"clip {clip.name} stands twice in {path}: {_DOWNLOAD}.")
        clips[clip.name] = clip
    return list(clips.values())


def _read_table(path: str) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file that are not blank, with their numbers; at least one."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except OSError as error:
        raise FSD50KError(f"{path} cannot be read ({error.strerror}): {_DOWNLOAD}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FSD50KError(f"{path} is not a CSV file in UTF-8 ({error}): {_DOWNLOAD}.") from error
    if not rows:
        raise FSD50KError(f"{path} is empty: {_DOWNLOAD}.")
    return rows


def _resample(
    source: str, target: str, clips: list[_Clip], workers: int | None, channel: Literal["mean", "first"], progress: bool
) -> _Recordings:
    """Makes the recordings that ``target`` does not have yet."""
    os.makedirs(target, exist_ok=True)
    with os.scandir(target) as entries:
        there = {entry.name for entry in entries if entry.stat().st_size > _WAV_HEADER}
    pending = [clip for clip in clips if f"{clip.name}.wav" not in there]

    def convert(clip: _Clip) -> LeftOut | None:
        path = os.path.join(source, f"{clip.name}.wav")
        try:
            audio.write_pcm16(os.path.join(target, f"{clip.name}.wav"), audio.read(path, channel=channel))
        except audio.AudioError as error:
            return LeftOut(path, error.reason)
        return None

    description = f"Resampling {os.path.basename(source)}"
    failures = audio.in_threads(convert, pending, description, workers=workers, progress=progress)
    broken = {clip.name for clip, failure in zip(pending, failures) if failure}
    left_out = [failure for failure in failures if failure]
    kept = [clip for clip in clips if clip.name not in broken]
    return _Recordings(target, kept, len(pending) - len(left_out), left_out)


def _write_datafiles(folder: str, vocabulary: Vocabulary, dev: _Recordings, held_out: _Recordings) -> Prepared:
    """Writes everything but the audio."""
    sets = {
        "fsd50k_tr_full": (dev, [clip for clip in dev.kept if clip.split == "train"]),
        "fsd50k_val_full": (dev, [clip for clip in dev.kept if clip.split == "val"]),
        "fsd50k_eval_full": (held_out, held_out.kept),
    }
    for name, (recordings, clips) in sets.items():
        if not clips:
            first = next((f", as {clip.path} {clip.reason}" for clip in recordings.left_out), f": {_DOWNLOAD}.")
            raise FSD50KError(f"{name} would have no clip{first}")
    os.makedirs(folder, exist_ok=True)
    labels = os.path.join(folder, "class_labels_indices.csv")
    vocabulary.write(labels)
    paths = {name: os.path.join(folder, f"{name}.json") for name in sets}
    for name, (recordings, clips) in sets.items():
        datafile.write(
            paths[name], ((os.path.join(recordings.folder, f"{clip.name}.wav"), clip.mids) for clip in clips)
        )
    train, validation, evaluation = paths.values()
    weights = datafile.weight_path(train)
    datafile.write_weights(datafile.Datafile.read(train, vocabulary), weights)
    train_clips, validation_clips, evaluation_clips = (len(clips) for _, clips in sets.values())
    return Prepared(
        train=train,
        validation=validation,
        evaluation=evaluation,
        labels=labels,
        weights=weights,
        train_clips=train_clips,
        validation_clips=validation_clips,
        evaluation_clips=evaluation_clips,
        resampled=dev.resampled + held_out.resampled,
        left_out=(*dev.left_out, *held_out.left_out),
    )
