"""FSD50K as downloaded: resampled audio, and datafiles (https://zenodo.org/record/4060432)."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import Literal

from psla_jax.audio import decode
from psla_jax.config import require_sample_rate
from psla_jax.data import datafile
from psla_jax.data.prepare.collection import ExcludedClip
from psla_jax.data.validate.findings import format_count
from psla_jax.vocabulary.vocabulary import Vocabulary, VocabularyError

_DEV, _EVAL = "FSD50K.dev_audio", "FSD50K.eval_audio"
_DOWNLOAD = "download it from https://zenodo.org/record/4060432 and unpack it there"
_WAV_HEADER_BYTES = 44


class FSD50KError(ValueError):
    """A folder that is not FSD50K or cannot be prepared."""


@dataclass(frozen=True)
class Prepared:
    """Result of :func:`prepare`. All paths are absolute."""

    datafiles: dict[str, str]
    clips: dict[str, int]
    """Datafile and number of clips of ``train``, ``validation`` and ``evaluation``."""
    labels: str
    """Vocabulary as a label CSV."""
    weights: str
    """Sampling weights of the training clips."""
    resampled: int
    """Number of recordings resampled in this run, without those of previous runs."""
    excluded: tuple[ExcludedClip, ...]

    def report(self) -> str:
        """Returns the written files and the excluded clips as lines for the screen."""
        lines = [f"{path}: {format_count(self.clips[part], 'clip')}" for part, path in self.datafiles.items()]
        lines.append(f"{self.labels}: the vocabulary; {self.weights}: sampling weights")
        lines.append(f"{format_count(self.resampled, 'recording')} resampled now, {len(self.excluded):,} excluded")
        return "\n".join([*lines, *(f"excluded: {clip.path} {clip.reason}" for clip in self.excluded)])


@dataclass(frozen=True)
class _Clip:
    name: str
    mids: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class _Recordings:
    """Result of :func:`_resample`: the clips with a resampled recording, and the number of those that are new."""

    folder: str
    clips: list[_Clip]
    resampled: int
    excluded: list[ExcludedClip]


def prepare(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    channel: Literal["mean", "first"] = "mean",
    sample_rate: int = decode.SAMPLE_RATE,
    progress: bool = True,
) -> Prepared:
    """Resamples FSD50K, to 16 kHz by default, and writes the reference's datafiles for it.

    Audio is written to ``FSD50K.dev_audio_16k`` and ``FSD50K.eval_audio_16k``, all else to ``datafiles``; for other
    rates the names are such as ``FSD50K.dev_audio_32k`` and ``datafiles_32k``. Existing recordings are not resampled
    again, so that an interrupted run can be restarted; the other files are rewritten.

    Args:
        directory: contains ``FSD50K.dev_audio``, ``FSD50K.eval_audio`` and ``FSD50K.ground_truth``.
        out: output folder; defaults to `directory`.
        workers: number of threads; None for a few more than there are cores.
        channel: how several channels are converted to mono, see :func:`psla_jax.audio.decode.read`.
        sample_rate: samples per second of the resampled recordings, those of the frontend that will be trained.
        progress: whether to show progress bars on stderr.

    Raises:
        FSD50KError: a folder or table is missing or malformed, a label is not in the data set's vocabulary, a set has
            no readable clip, or the results cannot be written. Missing or broken recordings are merely excluded.
    """
    if workers is not None and workers < 1:
        raise FSD50KError(f"workers is {workers}: use at least one thread.")
    require_sample_rate(sample_rate, "sample_rate")
    suffix = f"_{sample_rate / 1000:g}k"
    root = os.path.abspath(directory)
    target = root if out is None else os.path.abspath(out)
    truth = os.path.join(root, "FSD50K.ground_truth")
    vocabulary = _read_vocabulary(os.path.join(truth, "vocabulary.csv"))
    dev = _read_clips(os.path.join(truth, "dev.csv"), vocabulary, splits=("train", "val"))
    evaluation = _read_clips(os.path.join(truth, "eval.csv"), vocabulary)
    jobs = [(os.path.join(root, _DEV), os.path.join(target, f"{_DEV}{suffix}"), dev)]
    jobs.append((os.path.join(root, _EVAL), os.path.join(target, f"{_EVAL}{suffix}"), evaluation))
    for source, resampled, _ in jobs:
        if not os.path.isdir(source) and not os.path.isdir(resampled):
            raise FSD50KError(f"{root} has no folder {os.path.basename(source)}: {_DOWNLOAD}.")
    try:
        recordings = [_resample(*job, workers, channel, sample_rate, progress) for job in jobs]
        folder = "datafiles" if sample_rate == decode.SAMPLE_RATE else f"datafiles{suffix}"
        return _write_datafiles(os.path.join(target, folder), vocabulary, *recordings)
    except OSError as error:
        problem = f"{error.filename or target} cannot be written ({error.strerror})"
        raise FSD50KError(f"{problem}: free some space, or use another folder.") from error


def _read_vocabulary(path: str) -> Vocabulary:
    """Reads ``vocabulary.csv``: lines of index, label, mid without a header."""
    rows = _read_table(path)
    for index, (number, row) in enumerate(rows):
        if len(row) != 3 or row[0].strip() != str(index):
            raise FSD50KError(f"line {number} of {path} is {','.join(row)!r}, not {index},label,mid: {_DOWNLOAD}.")
    try:
        return Vocabulary(tuple(row[2].strip() for _, row in rows), tuple(row[1].strip() for _, row in rows))
    except VocabularyError as error:
        raise FSD50KError(f"{path} cannot be used ({str(error).rstrip('.')}): {_DOWNLOAD}.") from error


def _read_clips(path: str, vocabulary: Vocabulary, splits: tuple[str, ...] = ()) -> list[_Clip]:
    """Reads ``dev.csv`` (fname, labels, mids, split) or ``eval.csv`` (no split); clips are in the order of the file."""
    (_, header), *rows = _read_table(path)
    columns = ["fname", "labels", "mids", *(["split"] if splits else [])]
    if header != columns:
        raise FSD50KError(f"{path} starts with {','.join(header)!r}, not {','.join(columns)}: {_DOWNLOAD}.")
    clips: dict[str, _Clip] = {}
    for number, row in rows:
        if len(row) != len(columns) or (splits and row[3] not in splits):
            raise FSD50KError(f"line {number} of {path} is {','.join(row)!r}, not {','.join(columns)}: {_DOWNLOAD}.")
        clip = _Clip(row[0], tuple(mid.strip() for mid in row[2].split(",") if mid.strip()), row[3] if splits else "")
        unknown = [mid for mid in clip.mids if mid not in vocabulary]
        if unknown:
            lacks = f"has the mid {unknown[0]!r}, which vocabulary.csv lacks"
            raise FSD50KError(f"clip {clip.name} in {path} {lacks}: {_DOWNLOAD}.")
        if clip.name in clips:
            raise FSD50KError(f"clip {clip.name} is listed twice in {path}: {_DOWNLOAD}.")
        clips[clip.name] = clip
    return list(clips.values())


def _read_table(path: str) -> list[tuple[int, list[str]]]:
    """Returns the number and the cells of each line of a CSV file that is not blank; there is at least one."""
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
    source: str,
    target: str,
    clips: list[_Clip],
    workers: int | None,
    channel: Literal["mean", "first"],
    sample_rate: int,
    progress: bool,
) -> _Recordings:
    """Resamples the recordings that do not exist in ``target`` yet."""
    os.makedirs(target, exist_ok=True)
    with os.scandir(target) as entries:
        existing = {entry.name for entry in entries if entry.stat().st_size > _WAV_HEADER_BYTES}
    pending = [clip for clip in clips if f"{clip.name}.wav" not in existing]

    def convert(clip: _Clip) -> ExcludedClip | None:
        path = os.path.join(source, f"{clip.name}.wav")
        try:
            waveform = decode.read(path, channel=channel, sample_rate=sample_rate)
            decode.write_pcm16(os.path.join(target, f"{clip.name}.wav"), waveform, sample_rate)
        except decode.AudioError as error:
            return ExcludedClip(path, error.reason)
        return None

    description = f"Resampling {os.path.basename(source)}"
    results = decode.in_threads(convert, pending, description, workers=workers, progress=progress)
    failures = {clip.name: failure for clip, failure in zip(pending, results) if failure}
    usable = [clip for clip in clips if clip.name not in failures]
    return _Recordings(target, usable, len(pending) - len(failures), list(failures.values()))


def _write_datafiles(folder: str, vocabulary: Vocabulary, dev: _Recordings, evaluation: _Recordings) -> Prepared:
    parts = {
        "train": ("fsd50k_tr_full", dev, [clip for clip in dev.clips if clip.split == "train"]),
        "validation": ("fsd50k_val_full", dev, [clip for clip in dev.clips if clip.split == "val"]),
        "evaluation": ("fsd50k_eval_full", evaluation, evaluation.clips),
    }
    for name, recordings, clips in parts.values():
        if not clips:
            first = next((f", as {clip.path} {clip.reason}" for clip in recordings.excluded), f": {_DOWNLOAD}.")
            raise FSD50KError(f"{name} would have no clip{first}")
    os.makedirs(folder, exist_ok=True)
    labels = os.path.join(folder, "class_labels_indices.csv")
    vocabulary.write(labels)
    datafiles = {}
    for part, (name, recordings, clips) in parts.items():
        datafiles[part] = os.path.join(folder, f"{name}.json")
        records = ((os.path.join(recordings.folder, f"{clip.name}.wav"), clip.mids) for clip in clips)
        datafile.write(datafiles[part], records)
    weights = datafile.weight_path(datafiles["train"])
    datafile.write_weights(datafile.Datafile.read(datafiles["train"], vocabulary), weights)
    return Prepared(
        datafiles=datafiles,
        clips={part: len(clips) for part, (_, _, clips) in parts.items()},
        labels=labels,
        weights=weights,
        resampled=dev.resampled + evaluation.resampled,
        excluded=(*dev.excluded, *evaluation.excluded),
    )
