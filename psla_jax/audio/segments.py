"""Segments of recordings: the sound between two times, read without decoding the rest where the format permits.

The name of a segment is the path of its recording with a media fragment (https://www.w3.org/TR/media-frags), as in
``street.wav#t=12.5,15`` for the sound from 12.5 to 15 seconds. It identifies the segment in messages and score files.

The functions of this module read segments as well as whole files, for which they call :mod:`psla_jax.audio.decode`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from psla_jax.audio import decode
from psla_jax.audio.decode import StrPath
from psla_jax.audio.reading import AudioError, Reading
from psla_jax.audio.resampling import SAMPLE_RATE, Resampler
from psla_jax.audio.sources import Source
from psla_jax.config import Channel

WHOLE = (0.0, math.inf)
"""Start and end of a clip that is a whole recording."""
MAX_OVERRUN = 0.5
"""Seconds by which a segment may exceed its recording, because times are often rounded; it is cut then."""
_NUMBER = r"\d+(?:\.\d+)?"
_FRAGMENT = re.compile(rf"#t={_NUMBER}(?:,{_NUMBER})?$")
_BLOCK = 1 << 15
"""Samples, summed over the channels, that are decoded at a time."""
_SETTLING_SAMPLES = 2048
"""Samples, at the lower of both rates, after which the resampler does not depend on earlier ones."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a recording."""

    recording: str
    """Path of the recording, or its address in a shard."""
    start: float
    end: float
    """Seconds from the beginning of the recording; an infinite end is that of the recording."""

    def __fspath__(self) -> str:
        return f"{self.recording}{fragment(self.start, self.end)}"

    __str__ = __fspath__

    def samples(self, rate: int) -> tuple[int, float]:
        """Returns the numbers of the first sample at a rate in Hz, and of the one after the last, which may be inf."""
        return round(self.start * rate), self.end if math.isinf(self.end) else round(self.end * rate)


# ---- names


def cut(recording: str, start: float, end: float) -> str | Segment:
    """Returns a segment of a recording, or the recording itself for :data:`WHOLE`."""
    return recording if (start, end) == WHOLE else Segment(recording, start, end)


def fragment(start: float, end: float) -> str:
    """Returns the media fragment of a segment, such as ``#t=12.5,15``; empty for :data:`WHOLE`."""
    if (start, end) == WHOLE:
        return ""
    return f"#t={number(start)}" + ("" if math.isinf(end) else f",{number(end)}")


def number(seconds: float) -> str:
    """Formats a finite time with as few digits as identify the float and without exponent: ``15``, not ``15.0``."""
    return np.format_float_positional(seconds, trim="-")


def split_fragment(name: StrPath) -> tuple[str, str]:
    """Returns the path in the name of a clip, and the media fragment, which is empty for a whole recording."""
    path = os.fspath(name)
    match = _FRAGMENT.search(path) if "#t=" in path else None
    return (path[: match.start()], match[0]) if match else (path, "")


# ---- reading


def read(
    clip: StrPath,
    *,
    channel: Channel = "mean",
    seconds: float = math.inf,
    reading: Reading | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Reads a file or a segment as :func:`psla_jax.audio.decode.read` does: float32 ``(samples,)`` at `sample_rate`.

    The samples of a segment are those of the whole recording at that rate from ``round(sample_rate * start)`` on.

    Raises:
        AudioError: the recording cannot be read, or the segment is not within it or has no sample.
    """
    if not isinstance(clip, Segment):
        return decode.read(clip, channel=channel, seconds=seconds, reading=reading, sample_rate=sample_rate)
    return decode.join(clip, _waveform(clip, channel, reading or Reading(), sample_rate), seconds, sample_rate)


def blocks(
    clip: StrPath, *, channel: Channel = "mean", reading: Reading | None = None, sample_rate: int = SAMPLE_RATE
) -> Iterator[np.ndarray]:
    """Yields the waveform of :func:`read` in blocks, as :func:`psla_jax.audio.decode.blocks` does."""
    if not isinstance(clip, Segment):
        return decode.blocks(clip, channel=channel, reading=reading, sample_rate=sample_rate)
    return _waveform(clip, channel, reading or Reading(), sample_rate)


@contextlib.contextmanager
def open_audio(clip: StrPath) -> Iterator[Source]:
    """Opens a file, or the recording of a segment, as :func:`psla_jax.audio.decode.open_audio` does."""
    try:
        with decode.open_audio(clip.recording if isinstance(clip, Segment) else clip) as audio:
            yield audio
    except AudioError as error:
        raise AudioError(clip, error.reason) from error


def native_blocks(audio: Source, clip: StrPath, samples: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields a file or segment, opened as `audio`, as :func:`psla_jax.audio.decode.read_blocks` does.

    Raises AudioError if a segment is not within the recording.
    """
    if not isinstance(clip, Segment):
        yield from decode.read_blocks(audio, samples)
        return
    rate, began = audio.rate, 0.0
    first, stop = clip.samples(rate)
    position = first if audio.seek(first) else 0
    for block, block_rate in decode.read_blocks(audio, samples):
        if block_rate != rate:  # Another part of a joined file; its frames are counted from its beginning.
            began, rate, position = began + position / rate, block_rate, 0
            first, stop = Segment(clip.recording, clip.start - began, clip.end - began).samples(rate)
        kept = _part(block, position, first, stop)
        position += len(block)
        if len(kept):
            yield kept, rate
        if position >= stop:
            return
    _require_inside(clip, began + position / rate)


def duration(clip: StrPath) -> float:
    """Returns the duration of a file or segment in seconds, as :func:`psla_jax.audio.decode.duration` does.

    Raises AudioError if the file is missing, not audio or empty, or a segment is not within its recording.
    """
    if not isinstance(clip, Segment):
        return decode.duration(clip)
    with open_audio(clip) as audio:
        seconds = audio.seconds()
    _require_inside(clip, seconds)
    return min(clip.end, seconds) - clip.start


def _waveform(segment: Segment, channel: Channel, reading: Reading, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields the waveform of a segment in blocks: that of the whole recording, cut at the times of the segment."""
    start, stop = segment.samples(sample_rate)
    empty = True
    with open_audio(segment) as audio:
        position, resampled = _resampled_near(audio, segment, channel, reading, sample_rate)
        for block in resampled:
            kept = _part(block, position, start, stop)
            position += len(block)
            if len(kept):
                empty = False
                yield kept
            if position >= stop:
                break
        else:
            _require_inside(segment, position / sample_rate)
    if empty:
        raise AudioError(segment, f"is too short (no sample at {sample_rate / 1000:g} kHz): leave it out.")


def _resampled_near(
    audio: Source, segment: Segment, channel: Channel, reading: Reading, sample_rate: int
) -> tuple[int, Iterator[np.ndarray]]:
    """Returns the resampled waveform from shortly before a segment on, and the number of its first sample.

    The first sample is early enough for the resampler to settle, and at a time that falls on a sample at both rates, so
    that the same samples are computed as for the whole recording. If seeking to it would change samples, the first
    sample is that of the recording.
    """
    common = math.gcd(audio.rate, sample_rate)
    settled = segment.start - _SETTLING_SAMPLES / min(audio.rate, sample_rate)
    units = max(0, math.floor(settled * common))
    if not audio.seek(units * (audio.rate // common)):
        return 0, decode.blocks(segment.recording, channel=channel, reading=reading, sample_rate=sample_rate)
    native = (mono for mono, _ in decode.mono_blocks(audio, segment, channel, reading, _BLOCK))
    return units * (sample_rate // common), _resampled(native, audio.rate, sample_rate)


def _resampled(mono_blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    resampler = Resampler(rate, sample_rate)
    for block in mono_blocks:
        yield from resampler.push_in_pieces(block)
    yield resampler.finish()


def _part(block: np.ndarray, position: int, first: int, stop: float) -> np.ndarray:
    """Returns the samples `first` to `stop` of those in a block, which begins at sample `position`."""
    return block[max(0, first - position) : int(min(max(0, stop - position), len(block)))]


def _require_inside(segment: Segment, seconds: float) -> None:
    """Raises AudioError unless a segment is within its recording, which lasts `seconds`, up to rounding."""
    end = segment.start if math.isinf(segment.end) else segment.end
    if segment.start >= seconds or end > seconds + MAX_OVERRUN:
        reason = f"is not within the recording, which lasts {seconds:g} s: correct the times, or leave it out."
        raise AudioError(segment, reason)
