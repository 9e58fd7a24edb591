"""Measurements of audio files: format, peak, clipping, bandwidth and a digest of the samples."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft

from psla_jax.audio import decode, segments
from psla_jax.audio.segments import Segment
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.validate.preflight import ClipProblem, check_files
from psla_jax.runtime.threads import as_completed

CLIPPING_LEVEL = 0.9999
"""Magnitude from which a sample counts as clipped; the largest 16-bit value is 0.99997."""
MAX_SECONDS = 3600
"""Seconds of a file that are measured."""
READ_TIMEOUT = 120.0
"""Seconds after which reading a file is abandoned."""
_BLOCK = 1 << 18
_BAND = 125.0
"""Width in hertz of the bands of the spectrum in which a cutoff is searched."""
_LOWEST_CUTOFF, _HIGHEST_CUTOFF = 2000.0, 0.9
"""Range of the search for a cutoff: lowest in hertz, highest as a fraction of the Nyquist frequency."""
_MIN_DROP, _MAX_FLOOR = 25.0, 15.0
"""Decibels: least drop at a cutoff, and highest level above it relative to the rounding noise of 16 bits."""


@dataclass(frozen=True, slots=True)
class ClipMeasurement:
    """Measurements of one audio file."""

    rate: int
    """Samples per second."""
    channels: int
    samples: int
    """Samples per channel; beyond :data:`MAX_SECONDS`, as stated in the header."""
    is_float: bool
    """Whether samples are stored as floating-point numbers."""
    peak: float
    """Largest magnitude in any channel; full scale is 1."""
    mono_peak: float
    """Largest magnitude after the mixdown to one channel."""
    clipped: float
    """Fraction of samples at full scale or beyond."""
    bandwidth: float
    """Cutoff frequency of the spectrum in hertz; the Nyquist frequency if there is no sharp cutoff."""
    digest: bytes
    """Hash of sample rate and mixed-down samples, independent of the file format."""


_TYPES = {"int": "i8", "float": "f8", "bool": "?", "bytes": "S16"}
ROW = np.dtype([(field.name, _TYPES[str(field.type)]) for field in dataclasses.fields(ClipMeasurement)])
"""Structured dtype with the fields of :class:`ClipMeasurement`."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of the clips of a data set."""

    clips: np.ndarray
    """Indices of the measured clips in the datafile, ascending; int64 ``(measured,)``."""
    table: np.ndarray
    """Measurements of these clips; :data:`ROW` ``(measured,)``."""
    problems: tuple[ClipProblem, ...]
    """Clips that could not be read, and all clips of the data set whose file is missing or empty."""
    num_requested: int
    """Number of clips that were to be read."""
    notes: tuple[tuple[str, ...], ...] = ()
    """Sentences on the defects of each measured clip, in the order of `clips`; see :class:`decode.Reading`."""


def measure_file(path: decode.StrPath, channel: Channel, reading: decode.Reading | None = None) -> ClipMeasurement:
    """Measures a file, or a segment of one, in blocks, without relying on the length in its header.

    `reading` receives notes on the file.

    Raises:
        AudioError: the file is missing, is not audio, contains no samples or samples that no recording can have, or the
            segment is not within it.
    """
    with segments.open_audio(path) as file:
        rate = file.rate
        seconds, num_clipped, num_values, peak, mono_peak = 0.0, 0, 0, 0.0, 0.0
        digest, spectrum = hashlib.sha256(str(rate).encode()), _Spectrum(rate)
        for block, block_rate in segments.native_blocks(file, path, _BLOCK):
            mono = decode.to_mono(block, channel)
            decode.require_plausible(path, block, mono, seconds, block_rate)
            seconds, num_values = seconds + len(block) / block_rate, num_values + block.size
            magnitude = np.abs(block)
            peak, mono_peak = max(peak, float(magnitude.max())), max(mono_peak, float(np.abs(mono).max()))
            num_clipped += int(np.count_nonzero(magnitude >= CLIPPING_LEVEL))
            digest.update((mono + np.float32(0)).tobytes())  # turns -0, which integer formats lack, into 0
            spectrum.add(mono)
            if seconds >= MAX_SECONDS:
                break
        if not num_values:
            reason = "contains no samples: record or download it again, or remove it from the datafile."
            raise decode.AudioError(path, reason)
        if reading is not None:
            reading.notes += file.notes
        is_cut = seconds >= MAX_SECONDS and not isinstance(path, Segment)
        return ClipMeasurement(
            rate=rate,
            channels=file.channels,
            samples=round(max(seconds, file.seconds() if is_cut else 0.0) * rate),
            is_float=file.is_float,
            peak=peak,
            mono_peak=mono_peak,
            clipped=num_clipped / num_values,
            bandwidth=spectrum.bandwidth(),
            digest=digest.digest()[:16],
        )


class _Spectrum:
    """Mean power spectrum of a file in bands of equal width."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._size = 2 ** min(max(round(np.log2(rate / 8)), 4), 16)
        # Squared, because the sidelobes of a plain Hann window around a loud tone would look like a cutoff.
        self._window = np.square(np.hanning(self._size)).astype(np.float32)
        self._power = np.zeros(self._size // 2 + 1)
        self._num_windows = 0

    def add(self, mono: np.ndarray) -> None:
        windows = mono[: len(mono) // self._size * self._size].reshape(-1, self._size)
        if len(windows):
            self._num_windows += len(windows)
            self._power += np.square(np.abs(scipy.fft.rfft(windows * self._window))).sum(axis=0)

    def bandwidth(self) -> float:
        """Returns the frequency of a sharp drop to the noise floor, as resamplers cause, or else the Nyquist frequency.

        The spectrum of other recordings falls gently and has noise up to the end. A tone does not count as a cutoff,
        because the drop is measured from the weakest of the bands below it.
        """
        nyquist = self._rate / 2
        band = (np.arange(len(self._power)) * (self._rate / self._size) / _BAND).astype(int)
        count, first = int(nyquist / _BAND), int(_LOWEST_CUTOFF / _BAND)
        if not self._power.any() or count < first + 8 or self._rate / self._size > _BAND:
            return nyquist
        rounding = self._num_windows * np.square(self._window).sum() * 2.0**-30 / 12
        level = 10 * np.log10(np.bincount(band, self._power)[:count] / np.bincount(band)[:count] / rounding + 1e-3)
        cutoffs = np.arange(first, int(_HIGHEST_CUTOFF * count))
        above = np.array([level[cutoff + 2 :].max() for cutoff in cutoffs])
        drops = np.array([level[cutoff - 5 : cutoff - 1].min() for cutoff in cutoffs]) - above
        drops[above > _MAX_FLOOR] = 0
        return float(cutoffs[drops.argmax()] * _BAND) if drops.max() >= _MIN_DROP else nyquist


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Returns up to `limit` evenly spaced indices below `count`; all of them for a limit of 0."""
    size = min(limit, count) if limit > 0 else count
    return np.arange(size) * count // max(size, 1)


def measure_clips(
    data: Datafile,
    clips: Sequence[int] | np.ndarray,
    *,
    channel: Channel,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Measurements:
    """Looks up the files of all clips of a data set and measures those with the indices `clips`.

    Both happen in `workers` threads; None or 0 for the number of cores plus 4, at most 32. `advance` receives the
    number of clips looked up or read since its last call; the sum is ``len(data) + len(clips)``.
    """
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    problems: dict[int, ClipProblem] = {}
    blocks = [range(start, min(start + 256, len(data))) for start in range(0, len(data), 256)]
    for block, missing in as_completed(lambda block: check_files(data, block), blocks, threads, READ_TIMEOUT):
        missing = [_timed_out(data, i) for i in block] if missing is None else missing
        problems.update((problem.index, problem) for problem in missing)
        advance(len(block))
    readable = np.array([i for i in clips if int(i) not in problems], np.int64)
    advance(len(clips) - len(readable))
    table, measured = np.zeros(len(readable), ROW), np.zeros(len(readable), bool)
    notes: dict[int, tuple[str, ...]] = {}
    for k, result in as_completed(
        lambda k: _measure(data, int(readable[k]), channel), range(len(readable)), threads, READ_TIMEOUT
    ):
        if isinstance(result, tuple):
            table[k], notes[k], measured[k] = dataclasses.astuple(result[0]), result[1], True
        else:
            clip = int(readable[k])
            problems[clip] = result or _timed_out(data, clip)
        advance(1)
    in_order = tuple(problems[i] for i in sorted(problems)), len(clips), tuple(notes[k] for k in sorted(notes))
    return Measurements(readable[measured], table[measured], *in_order)


def _timed_out(data: Datafile, clip: int) -> ClipProblem:
    reason = (
        f"could not be read within {READ_TIMEOUT:.0f} s, because the disk does not respond or the decoder hangs: copy "
        "it to another disk, or remove it from the datafile."
    )
    return ClipProblem(clip, os.fspath(data.audio(clip)), reason)


def _measure(data: Datafile, clip: int, channel: Channel) -> tuple[ClipMeasurement, tuple[str, ...]] | ClipProblem:
    audio, reading = data.audio(clip), decode.Reading()
    try:
        return measure_file(audio, channel, reading), tuple(reading.notes)
    except decode.AudioError as error:
        return ClipProblem(clip, os.fspath(audio), error.reason)
