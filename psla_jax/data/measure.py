"""What is in the audio file of a clip: one file -> a row of measurements, a set -> a table of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import soundfile

from psla_jax import audio
from psla_jax.config import Channel
from psla_jax.data.check import Problem, look_up
from psla_jax.data.datafile import Datafile
from psla_jax.data.threads import as_answered

FULL_SCALE = 0.9999
"""From here on a sample counts as clipped; the largest of 16 bits is 0.99997."""
LONGEST = 3600
"""Seconds of a file that are measured; beyond them it is only said that there is more."""
PATIENCE = 120.0
"""Seconds that a file may take before it is given up."""
_BLOCK = 1 << 18
_BAND = 125.0
"""Width in hertz of the bands in which the end of the spectrum is looked for."""
_LOWEST_END, _NEAR_NYQUIST = 2000.0, 0.9
"""Where an end is looked for: in hertz, and as a share of half the rate."""
_DROP, _FLOOR = 25.0, 15.0
"""Decibels: the least fall at the end of a band, and how far the rest may be above the rounding noise of 16 bits."""

_CORRECTED = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a WAV file whose data end before they should, in bytes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip, as its file has it."""

    rate: int
    """Samples per second."""
    channels: int
    samples: int
    """Per channel; no more than :data:`LONGEST` seconds are counted one by one, what the header promises beyond it."""
    promised: int
    """Samples per channel according to the header."""
    is_float: bool
    """Whether samples are stored as floats."""
    finite: bool
    """Whether all samples are numbers."""
    peak: float
    """Largest magnitude in any channel; full scale is 1."""
    heard: float
    """Largest magnitude once the channels are one."""
    clipped: float
    """Share of the samples at full scale or beyond."""
    band: float
    """Where the spectrum ends, in hertz: half the rate, or less where it is cut off sharply, with nothing above."""
    digest: bytes
    """Hash of rate and samples, once the channels are one: equal for clips that sound the same, whatever the format."""

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


_TYPES = {"int": "i8", "float": "f8", "bool": "?", "bytes": "S16"}
ROW = np.dtype([(field.name, _TYPES[str(field.type)]) for field in dataclasses.fields(Measured)])
"""A :class:`Measured` as a row of a table."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """The clips of a set that were read."""

    clips: np.ndarray
    """int64 ``(clips read,)``: which ones of the datafile, ascending."""
    table: np.ndarray
    """:data:`ROW` ``(clips read,)``: what was measured."""
    problems: tuple[Problem, ...]
    """Clips that could not be read, and those whose file is not there, whether it was to be read or not."""
    chosen: int
    """How many clips were to be read."""


def measure(path: str | os.PathLike[str], channel: Channel) -> Measured:
    """Reads a file in blocks, whatever its header says of its length.

    Raises:
        AudioError: the file is missing, is not audio or holds no samples.
    """
    with audio.opened(path) as file:
        found = _Sums(file.samplerate)
        limit = LONGEST * file.samplerate
        for block in audio.decoded(file, _BLOCK):
            found.add(block, audio.to_mono(block, channel))
            if found.samples >= limit or not found.finite:
                break
        if not found.samples:
            raise audio.AudioError(path, "holds no samples: record or download it again, or leave it out.")
        return found.measured(file)


class _Sums:
    """What is known of a file after some of its blocks."""

    def __init__(self, rate: int) -> None:
        self.samples = 0
        self.finite = True
        self._rate = rate
        self._peak = self._heard = 0.0
        self._clipped = 0
        self._digest = hashlib.sha256(str(rate).encode())
        self._spectrum = _Spectrum(rate)

    def add(self, block: np.ndarray, heard: np.ndarray) -> None:
        """Takes a block ``(frames, channels)`` and the same as one channel."""
        self.samples += len(block)
        size = np.abs(block)
        largest = float(size.max())
        self.finite = bool(np.isfinite(largest))
        if not self.finite:
            return
        self._peak = max(self._peak, largest)
        self._clipped += int(np.count_nonzero(size >= FULL_SCALE))
        self._heard = max(self._heard, float(np.abs(heard).max()))
        self._digest.update((heard + np.float32(0)).tobytes())  # -0, which only floats have, becomes 0
        self._spectrum.add(heard)

    def measured(self, file: soundfile.SoundFile) -> Measured:
        return Measured(
            rate=self._rate,
            channels=file.channels,
            samples=max(self.samples, file.frames) if self.samples >= LONGEST * self._rate else self.samples,
            promised=_promised(file),
            is_float=file.subtype in ("FLOAT", "DOUBLE"),
            finite=self.finite,
            peak=self._peak,
            heard=self._heard,
            clipped=self._clipped / (self.samples * file.channels),
            band=self._spectrum.end(),
            digest=self._digest.digest()[:16],
        )


def _promised(file: soundfile.SoundFile) -> int:
    """Samples per channel that the header speaks of; libsndfile corrects those of a WAV file that was cut short."""
    corrected = _CORRECTED.search(file.extra_info)
    if corrected is None:
        return file.frames
    said, there = map(int, corrected.groups())
    # Programs that write into a pipe cannot know the length: they claim as much as there can be.
    return file.frames * said // there if there < said < 0x7F000000 else file.frames


class _Spectrum:
    """The mean power in bands of equal width, and where it ends."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._size = 2 ** min(max(round(np.log2(rate / 8)), 4), 16)
        # The square: the skirts of a loud tone, which a plain Hann window leaves, would look like a band.
        self._window = np.square(np.hanning(self._size)).astype(np.float32)
        self._power = np.zeros(self._size // 2 + 1)
        self._frames = 0

    def add(self, heard: np.ndarray) -> None:
        frames = heard[: len(heard) // self._size * self._size].reshape(-1, self._size)
        if len(frames):
            self._frames += len(frames)
            self._power += np.square(np.abs(scipy.fft.rfft(frames * self._window))).sum(axis=0)

    def end(self) -> float:
        """The frequency at which the level falls off a cliff, with nothing above: the mark of a resampler.

        Levels of recordings fall gently and have noise to the end. A tone is no cliff: beside it nothing falls.
        """
        nyquist = self._rate / 2
        band = (np.arange(len(self._power)) * (self._rate / self._size) / _BAND).astype(int)
        count = int(nyquist / _BAND)
        first = int(_LOWEST_END / _BAND)
        if not self._power.any() or count < first + 8 or self._rate / self._size > _BAND:
            return nyquist
        rounding = self._frames * np.square(self._window).sum() * 2.0**-30 / 12
        level = 10 * np.log10(np.bincount(band, self._power)[:count] / np.bincount(band)[:count] / rounding + 1e-3)
        ends = np.arange(first, int(_NEAR_NYQUIST * count))
        above = np.array([level[end + 2 :].max() for end in ends])
        drops = np.array([level[end - 5 : end - 1].min() for end in ends]) - above
        drops[above > _FLOOR] = 0
        return float(ends[drops.argmax()] * _BAND) if drops.max() >= _DROP else nyquist


def spread(count: int, limit: int) -> np.ndarray:
    """Up to so many of the numbers below ``count``, evenly spaced; all for a limit of 0."""
    chosen = min(limit, count) if limit > 0 else count
    return np.arange(chosen) * count // max(chosen, 1)


def measure_all(
    data: Datafile,
    chosen: Sequence[int] | np.ndarray,
    *,
    channel: Channel,
    workers: int | None = None,
    done: Callable[[int], None] = lambda clips: None,
) -> Measurements:
    """Looks up all clips of a set and measures some, in threads.

    Args:
        data: the set.
        chosen: which of its clips to read.
        channel: how several channels become one.
        workers: threads; None or 0 for one per core and a few more.
        done: called with the number of clips looked up or read since the last call; their sum is
            ``len(data) + len(chosen)``.
    """
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    problems: dict[int, Problem] = {}
    blocks = [range(start, min(start + 256, len(data))) for start in range(0, len(data), 256)]
    for block, found in as_answered(
        lambda block: [p for i in block if (p := look_up(data, i))], blocks, threads, PATIENCE
    ):
        late = [Problem(i, data.wav(i), _SILENT_DISK) for i in block] if found is None else found
        problems.update((problem.index, problem) for problem in late)
        done(len(block))
    clips = np.array([i for i in chosen if int(i) not in problems], np.int64)
    done(len(chosen) - len(clips))
    table, good = np.zeros(len(clips), ROW), np.zeros(len(clips), bool)
    for k, row in as_answered(lambda k: _measured(data, int(clips[k]), channel), range(len(clips)), threads, PATIENCE):
        if isinstance(row, Measured):
            table[k], good[k] = dataclasses.astuple(row), True
        else:
            clip = int(clips[k])
            problems[clip] = row or Problem(clip, data.wav(clip), _SILENT_DISK)
        done(1)
    return Measurements(clips[good], table[good], tuple(problems[i] for i in sorted(problems)), len(chosen))


_SILENT_DISK = (
    f"gave no answer in {PATIENCE:.0f} s: its disk does not answer or its decoder is stuck; copy it to another disk, "
    "or leave it out."
)


def _measured(data: Datafile, clip: int, channel: Channel) -> Measured | Problem:
    path = data.wav(clip)
    try:
        return measure(path, channel)
    except audio.AudioError as error:
        return Problem(clip, path, error.reason)
