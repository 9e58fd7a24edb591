"""A data set in a few large files: a datafile and its recordings -> a datafile and shards (:mod:`psla_jax.shards`)."""

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

from psla_jax import audio, shards
from psla_jax.config import Channel
from psla_jax.data import datafile
from psla_jax.data.check import Problem, look_up
from psla_jax.data.datafile import Datafile
from psla_jax.data.findings import many
from psla_jax.data.threads import in_order
from psla_jax.files import written_aside

Format = Literal["pcm16", "flac", "float32"]
FILES = {"pcm16": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "float32": ("AU", "FLOAT")}
"""What a record holds, as libsndfile names it. WAV would put the time of day beside floats."""
CLIPS_PER_SHARD = 8192
"""2.6 GB of ten-second clips; AudioSet in 250 files."""
TOO_LOUD = 2.0
"""Peak, of full scale, that 16 bits do not take: it is no overshoot of a resampler but another scale."""


class PackError(ValueError):
    """A data set that cannot be packed as asked; the message names the file and the remedy."""


@dataclass(frozen=True)
class Job:
    """All that decides what is in the shards."""

    datafile: str
    sha256: str
    """Of the datafile."""
    format: Format
    channel: Channel
    clips_per_shard: int


@dataclass(frozen=True)
class Shard:
    """A shard that is done."""

    clips: int
    """How many it holds."""
    exact: int
    """How many of them are, sample for sample, what is read from their files."""
    left_out: list[Problem] = field(default_factory=list)

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> Shard:
        """What ``asdict`` made of one."""
        return cls(known["clips"], known["exact"], [Problem(**problem) for problem in known["left_out"]])


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` made."""

    datafile: str
    format: Format
    shards: tuple[Shard, ...]
    kept: int
    """How many of the shards were there already."""
    size: int
    """Bytes of all shards."""

    @property
    def clips(self) -> int:
        return sum(shard.clips for shard in self.shards)

    @property
    def left_out(self) -> list[Problem]:
        return [problem for shard in self.shards for problem in shard.left_out]

    def report(self) -> str:
        """What was made, in lines for the screen."""
        exact, kept = sum(shard.exact for shard in self.shards), f", {self.kept} of them kept" if self.kept else ""
        lines = [
            f"{self.datafile}: {many(self.clips, 'clip')}",
            f"{many(len(self.shards), 'shard')} of {self.format}{kept}, {self.size / 1e6:,.1f} MB",
            f"read exactly as from their files: {many(exact, 'clip', self.clips)}",
        ]
        if exact < self.clips:
            lines.append("the others as from 16-bit copies at 16 kHz; --format float32 keeps them exactly")
        return "\n".join([*lines, *(f"left out: {problem.path} {problem.reason}" for problem in self.left_out)])


def pack(
    source: str,
    destination: str,
    *,
    format: Format = "pcm16",
    channel: Channel = "mean",
    unreadable: Literal["stop", "skip"] = "stop",
    clips_per_shard: int = CLIPS_PER_SHARD,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Packed:
    """Writes the clips of a datafile into shards, as mono at 16 kHz, and a datafile of the same name that finds them.

    A shard appears whole or not at all, and the datafile last: interrupted, it goes on with the shards that are missing
    when it is started again. In training the result stands for the original, clip by clip.

    Args:
        source: the datafile.
        destination: folder for the results; any number of sets may share one.
        format: 16 bits, the same compressed without loss, or 32-bit floats, which hold everything exactly.
        channel: how several channels become one.
        unreadable: whether a clip that cannot be read ends it, or is left out.
        clips_per_shard: the last shard has what is left.
        workers: threads; None or 0 for one per core and a few more.
        force: start anew where a pack of this name is.
        progress: whether to show a bar on stderr.

    Raises:
        PackError: the results are there already, or a clip cannot be read.
        DatafileError: the datafile cannot be used.
        ShardError: a shard cannot be written.
    """
    if clips_per_shard < 1:
        raise PackError(f"clips_per_shard is {clips_per_shard}: use at least one clip.")
    data, mids = datafile.read_any(source)
    job = Job(data.source, data.sha256, format, channel, clips_per_shard)
    place = _Place(os.path.abspath(destination), os.path.splitext(os.path.basename(data.source))[0], data, job)
    done = place.begin(force)
    kept = len(done)
    bar = Console(stderr=True)
    with Progress(console=bar, transient=True, disable=not (progress and bar.is_terminal)) as shown:
        task = shown.add_task("Packing", total=len(data), completed=sum(len(place.clips(n)) for n in done))
        for number in (n for n in range(place.count) if n not in done):
            work = _Packer(data, job, unreadable, workers or min(32, (os.cpu_count() or 1) + 4))
            done[number] = work.write(place.shard(number), place.clips(number), lambda: shown.advance(task))
            place.note(done)
    made = tuple(done[number] for number in range(place.count))
    if not any(shard.clips for shard in made):
        raise PackError(f"no clip of {source} can be read, so there is nothing to pack: psla check tells more.")
    if kept < place.count or not os.path.isfile(place.datafile):
        datafile.write(place.datafile, place.records(made, mids), exclusive=data.exclusive)
    size = sum(os.path.getsize(place.shard(number)) for number in range(place.count))
    return Packed(place.datafile, format, made, kept, size)


@dataclass(frozen=True)
class _Place:
    """Where the results of a job go."""

    folder: str
    stem: str
    data: Datafile
    job: Job

    @property
    def count(self) -> int:
        """How many shards there will be."""
        return -(-len(self.data) // self.job.clips_per_shard)

    @property
    def datafile(self) -> str:
        return os.path.join(self.folder, f"{self.stem}.json")

    @property
    def notes(self) -> str:
        """What the job is and which shards are done."""
        return os.path.join(self.folder, f"{self.stem}.pack.json")

    def shard(self, number: int) -> str:
        return os.path.join(self.folder, f"{self.stem}-{number:05d}-of-{self.count:05d}{shards.SUFFIX}")

    def clips(self, number: int) -> range:
        """The clips of the datafile that belong in a shard."""
        size = self.job.clips_per_shard
        return range(number * size, min((number + 1) * size, len(self.data)))

    def begin(self, force: bool) -> dict[int, Shard]:
        """Makes the folder, or finds what is done of the same job."""
        if os.path.realpath(self.datafile) == os.path.realpath(self.data.source):
            raise PackError(f"{self.folder} holds the datafile itself: name another folder.")
        os.makedirs(self.folder, exist_ok=True)
        ours = re.compile(rf"{re.escape(self.stem)}-\d{{5}}-of-\d{{5}}{re.escape(shards.SUFFIX)}")
        found = [name for name in os.listdir(self.folder) if ours.fullmatch(name)]
        outputs = [*found, *(os.path.basename(p) for p in (self.notes, self.datafile) if os.path.exists(p))]
        if force:
            for name in outputs:
                os.unlink(os.path.join(self.folder, name))
            outputs = []
        left = [n for n in os.listdir(self.folder) if n.startswith(f".{self.stem}-") and n.endswith(".part")]
        for name in left:  # of a start that was killed
            os.unlink(os.path.join(self.folder, name))
        return self._resumed() if outputs else {}

    def _resumed(self) -> dict[int, Shard]:
        remedy = "name another folder, or replace what is there with --force"
        try:
            with open(self.notes, encoding="utf-8") as file:
                known = json.load(file)
            job, done = known["job"], {int(n): Shard.from_json(shard) for n, shard in known["shards"].items()}
        except FileNotFoundError:
            raise PackError(f"{self.folder} has a {self.stem} already that psla pack did not make: {remedy}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PackError(f"{self.notes} cannot be used ({error!r}): {remedy}.") from error
        mine = asdict(self.job)
        changed = [f"{name} {job.get(name)}, not {mine[name]}" for name in mine if job.get(name) != mine[name]]
        if changed:
            raise PackError(f"{self.folder} has a {self.stem} packed otherwise ({'; '.join(changed)}): {remedy}.")
        return {number: shard for number, shard in done.items() if os.path.isfile(self.shard(number))}

    def note(self, done: dict[int, Shard]) -> None:
        """Writes down what is done."""
        with written_aside(self.notes) as file:
            known = {"job": asdict(self.job), "shards": {str(n): asdict(done[n]) for n in sorted(done)}}
            json.dump(known, file, indent=1)

    def records(self, made: tuple[Shard, ...], mids: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
        """The packed datafile: the address and the labels of every clip that is in a shard."""
        for number, shard in enumerate(made):
            missing = {problem.index for problem in shard.left_out}
            inside = (clip for clip in self.clips(number) if clip not in missing)
            for record, clip in enumerate(inside):
                address = shards.Address(os.path.basename(self.shard(number)), record, self.data.clip_id(clip))
                yield str(address), [mids[label] for label in self.data.labels(clip)]


@dataclass(frozen=True)
class _Packer:
    """Reads clips and writes them into a shard."""

    data: Datafile
    job: Job
    unreadable: Literal["stop", "skip"]
    workers: int

    def write(self, path: str, clips: range, advance: Callable[[], None]) -> Shard:
        left_out: list[Problem] = []
        exact = 0

        def encoded() -> Iterator[tuple[str, bytes]]:
            nonlocal exact
            for found in in_order(self._encoded, clips, self.workers):
                advance()
                if isinstance(found, Problem):
                    self._set_aside(found, left_out)
                else:
                    clip, content, same = found
                    exact += same
                    yield self.data.clip_id(clip), content

        return Shard(shards.write(path, encoded()), exact, left_out)

    def _set_aside(self, problem: Problem, left_out: list[Problem]) -> None:
        if self.unreadable == "stop":
            raise PackError(
                f"{problem.path} {problem.reason.rstrip('.')}. Start it again to go on, or leave such clips out with "
                "--unreadable skip."
            )
        left_out.append(problem)

    def _encoded(self, clip: int) -> tuple[int, bytes, bool] | Problem:
        """A clip, its audio file, and whether that holds exactly what was read."""
        problem = look_up(self.data, clip)
        if problem:
            return problem
        path = self.data.wav(clip)
        try:
            return clip, *encode(audio.read(path, channel=self.job.channel), path, self.job.format)
        except audio.AudioError as error:
            return Problem(clip, path, error.reason)


def encode(waveform: np.ndarray, path: str, format: Format) -> tuple[bytes, bool]:
    """A waveform, float32 ``(samples,)`` at 16 kHz, as an audio file, and whether that gives it back exactly.

    Raises:
        AudioError: it is too loud for 16 bits, or its path is not UTF-8, which no datafile takes.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise audio.AudioError(path, "has a name that is not UTF-8: rename it.") from None
    stored, exact = waveform, True
    if format != "float32":
        peak = float(np.abs(waveform).max())
        if peak >= TOO_LOUD:
            raise audio.AudioError(
                path, f"has a peak of {peak:.3g} times full scale: correct its scale, or pack with --format float32."
            )
        stored = audio.pcm16(waveform)
        exact = np.array_equal(stored / np.float32(32768), waveform)
    file = io.BytesIO()
    kind, subtype = FILES[format]
    soundfile.write(file, stored, audio.SAMPLE_RATE, format=kind, subtype=subtype)
    return file.getvalue(), exact
