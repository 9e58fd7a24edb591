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
import soundfile

from psla_jax.audio import decode
from psla_jax.audio.decode import SAMPLE_RATE, AudioError, StrPath
from psla_jax.config import Channel

WHOLE = (0.0, math.inf)
"""Start and end of a clip that is a whole recording."""
MAX_OVERRUN = 0.5
"""Seconds by which a segment may exceed its recording, because times are often rounded; it is cut then."""
_NUMBER = r"\d+(?:\.\d+)?"
_FRAGMENT = re.compile(rf"#t={_NUMBER}(?:,{_NUMBER})?$")
_BLOCK, _SEQUENTIAL_BLOCK = 1 << 15, 1 << 20
"""Samples, summed over the channels, that are decoded at a time: after a seek, and from the beginning of a recording.

The latter is that of :func:`psla_jax.audio.decode.blocks`, because soundfile seeks after every read.
"""
_SETTLING_SAMPLES = 2048
"""Samples, at the lower of both rates, after which the resampler does not depend on earlier ones."""
_INEXACT_SEEK = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
"""Encodings whose frames depend on earlier ones, so that the samples after a seek may differ."""


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


def read(clip: StrPath, *, channel: Channel = "mean", seconds: float = math.inf) -> np.ndarray:
    """Reads a file or a segment as :func:`psla_jax.audio.decode.read` does: float32 ``(samples,)`` at 16 kHz.

    The samples of a segment are those of the whole recording at 16 kHz from ``round(16000 * start)`` on.

    Raises:
        AudioError: the recording cannot be read, or the segment is not within it or has no sample.
    """
    if not isinstance(clip, Segment):
        return decode.read(clip, channel=channel, seconds=seconds)
    return decode.join(clip, _waveform(clip, channel), seconds)


def blocks(clip: StrPath, *, channel: Channel = "mean") -> Iterator[np.ndarray]:
    """Yields the waveform of :func:`read` in blocks, as :func:`psla_jax.audio.decode.blocks` does."""
    return _waveform(clip, channel) if isinstance(clip, Segment) else decode.blocks(clip, channel=channel)


@contextlib.contextmanager
def open_audio(clip: StrPath) -> Iterator[soundfile.SoundFile]:
    """Opens a file, or the recording of a segment, as :func:`psla_jax.audio.decode.open_audio` does."""
    try:
        with decode.open_audio(clip.recording if isinstance(clip, Segment) else clip) as audio:
            yield audio
    except AudioError as error:
        raise AudioError(clip, error.reason) from error


def native_blocks(audio: soundfile.SoundFile, clip: StrPath, samples: int) -> Iterator[np.ndarray]:
    """Yields a file or segment, opened as `audio`, as float32 ``(frames, channels)`` blocks at the rate of the file.

    A block of a file has at most `samples` samples. Raises AudioError if a segment is not within the recording.
    """
    if not isinstance(clip, Segment):
        return decode.read_blocks(audio, samples)
    first, stop = clip.samples(audio.samplerate)
    return _part(_blocks_from(audio, clip, first), first, first, stop)


def duration(clip: StrPath) -> float:
    """Returns the duration of a file or segment in seconds by the header of the file.

    Raises AudioError if the file is missing, not audio or empty, or a segment is not within its recording.
    """
    if not isinstance(clip, Segment):
        return decode.duration(clip)
    with open_audio(clip) as audio:
        seconds = audio.frames / audio.samplerate
    _require_inside(clip, seconds)
    return min(clip.end, seconds) - clip.start


def sample_rate(clip: StrPath) -> int:
    """Returns the sample rate in Hz according to the header of a file or recording; 0 if it is unreadable."""
    return decode.header(clip.recording if isinstance(clip, Segment) else clip)[1]


def _waveform(segment: Segment, channel: Channel) -> Iterator[np.ndarray]:
    """Yields the waveform of a segment in blocks: that of the whole recording, cut at the times of the segment.

    Decoding begins earlier, so that the resampler has settled, and at a time that falls on a sample at both rates, so
    that it computes the same samples as for the whole recording.
    """
    empty = True
    with open_audio(segment) as audio:
        rate = audio.samplerate
        common = math.gcd(rate, SAMPLE_RATE)
        settled = segment.start - _SETTLING_SAMPLES / min(rate, SAMPLE_RATE)
        units = max(0, math.floor(settled * common))
        native = _blocks_from(audio, segment, units * (rate // common))
        resampled = _resampled((decode.finite_mono(segment, block, channel) for block in native), rate)
        for block in _part(resampled, units * (SAMPLE_RATE // common), *segment.samples(SAMPLE_RATE)):
            empty = False
            yield block
    if empty:
        raise AudioError(segment, "is too short (no sample at 16 kHz): leave it out.")


def _blocks_from(audio: soundfile.SoundFile, segment: Segment, first: int) -> Iterator[np.ndarray]:
    """Yields the frames of a recording from number `first` to its end, where a segment beyond it is an error.

    Frames before `first` are skipped by seeking where that changes no sample, and decoded otherwise.
    """
    exact = audio.seekable() and audio.subtype not in _INEXACT_SEEK and first <= audio.frames
    position = audio.seek(first) if exact else 0
    for block in decode.read_blocks(audio, _BLOCK if exact else _SEQUENTIAL_BLOCK):
        kept = block[max(0, first - position) :]
        position += len(block)
        if len(kept):
            yield kept
    _require_inside(segment, position / audio.samplerate)


def _require_inside(segment: Segment, seconds: float) -> None:
    """Raises AudioError unless a segment is within its recording, which lasts `seconds`, up to rounding."""
    end = segment.start if math.isinf(segment.end) else segment.end
    if segment.start >= seconds or end > seconds + MAX_OVERRUN:
        reason = f"is not within the recording, which lasts {seconds:g} s: correct the times, or leave it out."
        raise AudioError(segment, reason)


def _resampled(mono_blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    resampler = decode.Resampler(rate)
    for block in mono_blocks:
        yield from resampler.push_in_pieces(block)
    yield resampler.finish()


def _part(consecutive: Iterable[np.ndarray], position: int, start: int, stop: float) -> Iterator[np.ndarray]:
    """Yields samples `start` to `stop` of blocks of which the first begins at sample `position`; reads no further."""
    for block in consecutive:
        kept = block[max(0, start - position) : int(min(max(0, stop - position), len(block)))]
        position += len(block)
        if len(kept):
            yield kept
        if position >= stop:
            return
