"""Packs the recordings of a datafile into shards (:mod:`psla_jax.audio.shards`) and writes a datafile of the shards."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import Progress

from psla_jax.audio import decode, segments, shards
from psla_jax.config import Channel, require_sample_rate
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import data_notes
from psla_jax.data.validate.findings import format_count
from psla_jax.data.validate.preflight import ClipProblem, check_file
from psla_jax.runtime.files import atomic_text
from psla_jax.runtime.terminal import printable
from psla_jax.runtime.threads import in_order

Format = Literal["pcm16", "flac", "float32"]
CONTAINERS = {"pcm16": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "float32": ("AU", "FLOAT")}
"""File format and subtype of a record in libsndfile. Not WAV for floats, whose header contains the time of day."""
CLIPS_PER_SHARD = 8192
"""Default number of clips per shard: 2.6 GB of ten-second clips, AudioSet in 250 shards."""
MAX_PCM16_PEAK = 2.0
"""Lowest peak, relative to full scale, that 16-bit formats refuse: more than the overshoot of a resampler."""


class PackError(ValueError):
    """A data set that cannot be packed; the message names the file and the remedy."""


@dataclass(frozen=True)
class Job:
    """The settings that determine the contents of the shards."""

    datafile: str
    sha256: str
    """SHA-256 of the datafile."""
    format: Format
    channel: Channel
    clips_per_shard: int
    sample_rate: int = decode.SAMPLE_RATE

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1:
            raise PackError(f"clips_per_shard is {self.clips_per_shard}: use at least one clip.")
        require_sample_rate(self.sample_rate, "sample_rate")


@dataclass(frozen=True)
class Shard:
    """A finished shard."""

    clips: int
    exact: int
    """Number of clips whose samples equal those read from their original files."""
    left_out: list[ClipProblem] = field(default_factory=list)
    """Unreadable clips that were skipped."""
    damaged: list[ClipProblem] = field(default_factory=list)
    """Defects of clips that were packed although a part of them is missing."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Shard:
        """Inverse of ``asdict``."""
        left_out, damaged = ([ClipProblem(**problem) for problem in values.get(k, ())] for k in ("left_out", "damaged"))
        return cls(values["clips"], values["exact"], left_out, damaged)


@dataclass(frozen=True)
class PackResult:
    """Result of :func:`pack`."""

    datafile: str
    """Path of the datafile of the shards."""
    format: Format
    shards: tuple[Shard, ...]
    reused: int
    """Number of shards that an earlier call had finished."""
    size: int
    """Size of all shards in bytes."""

    @property
    def clips(self) -> int:
        return sum(shard.clips for shard in self.shards)

    @property
    def left_out(self) -> list[ClipProblem]:
        return [problem for shard in self.shards for problem in shard.left_out]

    def report(self) -> str:
        """Returns a summary for the screen."""
        exact, reused = sum(shard.exact for shard in self.shards), f", {self.reused} reused" if self.reused else ""
        lines = [
            f"{self.datafile}: {format_count(self.clips, 'clip')}",
            f"{format_count(len(self.shards), 'shard')} of {self.format}{reused}, {self.size / 1e6:,.1f} MB",
            f"samples identical to those read from the original files: {format_count(exact, 'clip', self.clips)}",
        ]
        if exact < self.clips:
            lines.append("the other clips are rounded to 16 bits; --format float32 stores them exactly")
        lines += [f"left out: {problem.path} {problem.reason}" for problem in self.left_out]
        lines += [f"damaged: {defect.path} {defect.reason}" for shard in self.shards for defect in shard.damaged]
        return "\n".join(lines)


def pack(
    source: str,
    destination: str,
    *,
    format: Format = "pcm16",
    channel: Channel = "mean",
    unreadable: Literal["stop", "skip"] = "stop",
    clips_per_shard: int = CLIPS_PER_SHARD,
    sample_rate: int = decode.SAMPLE_RATE,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> PackResult:
    """Writes the clips of a datafile into shards, mono at one rate, and a datafile of that name which refers to them.

    The result replaces the original in training: clips, labels and ids are the same, and the samples are equal or, in
    the 16-bit formats, rounded. Each shard is written atomically and the datafile last; called again after an
    interruption, the function writes only the missing shards.

    Args:
        source: the datafile.
        destination: directory for the shards and the datafile; several data sets can share it.
        format: ``pcm16``, 16-bit samples; ``flac``, the same with lossless compression; ``float32``, exact samples.
        channel: mixdown of several channels: their mean, or the first channel.
        unreadable: whether an unreadable clip stops the function or is skipped.
        clips_per_shard: number of clips in each shard but the last.
        sample_rate: samples per second of the shards. A training at another rate resamples them again.
        workers: number of threads; None or 0 for the number of cores plus 4, at most 32.
        force: whether to replace the results of an earlier call.
        progress: whether to show a progress bar on stderr.

    Raises:
        PackError, ConfigError: other results exist, a clip cannot be read, or a setting is invalid.
        DatafileError: the datafile is unusable.
        ShardError: a shard cannot be written.
    """
    data, mids = datafile.read_open_vocabulary(source)
    job = Job(data.source, data.sha256, format, channel, clips_per_shard, sample_rate)
    output = _Output(os.path.abspath(destination), os.path.splitext(os.path.basename(data.source))[0], data, job)
    finished = output.prepare(force)
    output.write_manifest(finished)  # Before the first shard, so that the same command resumes whatever happens to it.
    reused, threads = len(finished), workers or min(32, (os.cpu_count() or 1) + 4)
    console = Console(emoji=False, stderr=True)
    for note in data_notes(data, held_out=False):
        console.print(printable(note), markup=False, highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("Packing", total=len(data), completed=sum(len(output.clips(n)) for n in finished))
        for number in (n for n in range(output.num_shards) if n not in finished):
            finished[number] = _write_shard(
                output, number, skip=unreadable == "skip", workers=threads, advance=lambda: bar.advance(task)
            )
            output.write_manifest(finished)
    all_shards = tuple(finished[number] for number in range(output.num_shards))
    if not any(shard.clips for shard in all_shards):
        raise PackError(f"no clip of {source} can be read, so there is nothing to pack: psla check lists the reasons.")
    if reused < output.num_shards or not os.path.isfile(output.datafile):
        datafile.write(output.datafile, output.records(all_shards, mids), exclusive=data.exclusive)
    size = sum(os.path.getsize(output.shard(number)) for number in range(output.num_shards))
    return PackResult(output.datafile, format, all_shards, reused, size)


@dataclass(frozen=True)
class _Output:
    """The files of a job: shards, datafile and manifest."""

    directory: str
    stem: str
    data: Datafile
    job: Job

    @property
    def num_shards(self) -> int:
        return -(-len(self.data) // self.job.clips_per_shard)

    @property
    def datafile(self) -> str:
        return os.path.join(self.directory, f"{self.stem}.json")

    @property
    def manifest(self) -> str:
        """Path of the file that records the job and its finished shards."""
        return os.path.join(self.directory, f"{self.stem}.pack.json")

    def shard(self, number: int) -> str:
        return os.path.join(self.directory, f"{self.stem}-{number:05d}-of-{self.num_shards:05d}{shards.SUFFIX}")

    def clips(self, number: int) -> range:
        """Returns the indices of the clips that belong in a shard."""
        size = self.job.clips_per_shard
        return range(number * size, min((number + 1) * size, len(self.data)))

    def prepare(self, force: bool) -> dict[int, Shard]:
        """Creates the directory and returns the finished shards of the same job; with `force`, deletes all results."""
        if os.path.realpath(self.datafile) == os.path.realpath(self.data.source):
            raise PackError(f"{self.directory} contains the datafile to pack: use another directory.")
        os.makedirs(self.directory, exist_ok=True)
        pattern = re.compile(rf"{re.escape(self.stem)}-\d{{5}}-of-\d{{5}}{re.escape(shards.SUFFIX)}")
        results = [name for name in os.listdir(self.directory) if pattern.fullmatch(name)]
        results += [os.path.basename(path) for path in (self.manifest, self.datafile) if os.path.exists(path)]
        stale = [n for n in os.listdir(self.directory) if n.startswith(f".{self.stem}-") and n.endswith(".part")]
        for name in [*stale, *(results if force else ())]:
            os.unlink(os.path.join(self.directory, name))
        return self._finished_shards() if results and not force else {}

    def _finished_shards(self) -> dict[int, Shard]:
        existing = f"{self.directory} already contains {self.stem}"
        remedy = "use another directory, or replace the existing files with --force"
        try:
            with open(self.manifest, encoding="utf-8") as file:
                manifest = json.load(file)
            job = {"sample_rate": decode.SAMPLE_RATE} | manifest["job"]  # Earlier versions had no other rate.
            done = {int(n): Shard.from_json(shard) for n, shard in manifest["shards"].items()}
        except FileNotFoundError:
            raise PackError(f"{existing} files that psla pack did not write: {remedy}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PackError(f"{self.manifest} is not a manifest of psla pack ({error!r}): {remedy}.") from error
        own = asdict(self.job).items()
        changed = [f"{name} {job.get(name)}, not {value}" for name, value in own if job.get(name) != value]
        if changed and done:
            raise PackError(f"{existing} packed with other settings ({'; '.join(changed)}): {remedy}.")
        return {number: shard for number, shard in done.items() if os.path.isfile(self.shard(number))}

    def write_manifest(self, finished: dict[int, Shard]) -> None:
        with atomic_text(self.manifest) as file:
            entries = {str(number): asdict(finished[number]) for number in sorted(finished)}
            json.dump({"job": asdict(self.job), "shards": entries}, file, indent=1)

    def records(self, all_shards: tuple[Shard, ...], mids: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
        """Yields the records of the packed datafile: address and labels of every clip that is in a shard."""
        for number, shard in enumerate(all_shards):
            skipped = {problem.index for problem in shard.left_out}
            packed = (clip for clip in self.clips(number) if clip not in skipped)
            for record, clip in enumerate(packed):
                address = shards.Address(os.path.basename(self.shard(number)), record, self.data.clip_id(clip))
                yield str(address), [mids[label] for label in self.data.labels(clip)]


def _write_shard(output: _Output, number: int, *, skip: bool, workers: int, advance: Callable[[], None]) -> Shard:
    """Reads clips in threads and writes them to a shard; unreadable clips are skipped if `skip`, else raise."""
    left_out: list[ClipProblem] = []
    damaged: list[ClipProblem] = []
    num_exact = 0

    def records() -> Iterator[tuple[str, bytes]]:
        nonlocal num_exact
        for result in in_order(lambda clip: _encode_clip(output.data, clip, output.job), output.clips(number), workers):
            advance()
            if not isinstance(result, ClipProblem):
                clip, content, exact, notes = result
                num_exact += exact
                damaged.extend(ClipProblem(clip, os.fspath(output.data.audio(clip)), note) for note in notes)
                yield output.data.clip_id(clip), content
            elif skip:
                left_out.append(result)
            else:
                raise PackError(
                    f"{result.path} {result.reason.rstrip('.')}. Start the command again to resume, or skip unreadable "
                    "clips with --unreadable skip."
                )

    return Shard(shards.write(output.shard(number), records()), num_exact, left_out, damaged)


def _encode_clip(data: Datafile, clip: int, job: Job) -> tuple[int, bytes, bool, list[str]] | ClipProblem:
    """Returns a clip, its encoded audio file, whether that contains exactly the samples that were read, and notes."""
    problem = check_file(data, clip)
    if problem:
        return problem
    audio, reading = data.audio(clip), decode.Reading()
    path = os.fspath(audio)
    try:
        waveform = segments.read(audio, channel=job.channel, reading=reading, sample_rate=job.sample_rate)
        return clip, *encode(waveform, path, job.format, job.sample_rate), reading.notes
    except decode.AudioError as error:
        return ClipProblem(clip, path, error.reason)


def encode(
    waveform: np.ndarray, path: str, format: Format, sample_rate: int = decode.SAMPLE_RATE
) -> tuple[bytes, bool]:
    """Encodes a waveform, float32 ``(samples,)``, as an audio file.

    Returns the content of the file, and whether decoding it gives exactly `waveform`.

    Raises:
        AudioError: the peak exceeds :data:`MAX_PCM16_PEAK` in a 16-bit format, or `path` is not UTF-8, which datafiles
            do not support.
    """
    if path.encode(errors="ignore").decode() != path:
        raise decode.AudioError(path, "has a name that is not UTF-8: rename it.")
    stored, exact = waveform, True
    if format != "float32":
        peak = float(np.abs(waveform).max())
        if peak >= MAX_PCM16_PEAK:
            reason = f"has a peak of {peak:.3g} times full scale: rescale it to [-1, 1], or pack with --format float32."
            raise decode.AudioError(path, reason)
        stored = decode.pcm16(waveform)
        exact = np.array_equal(stored / np.float32(32768), waveform)
    file = io.BytesIO()
    container, subtype = CONTAINERS[format]
    soundfile.write(file, stored, sample_rate, format=container, subtype=subtype)
    return file.getvalue(), exact
