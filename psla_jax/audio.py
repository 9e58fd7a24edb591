"""Any audio file or array as a mono waveform at 16 kHz, whole or in blocks, and such a waveform as a 16-bit file.

Wherever a path is asked for, the address of a clip in a shard will do as well (:mod:`psla_jax.shards`).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import sys
import uuid
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Literal, TypeVar

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.progress import track

from psla_jax import shards

Item = TypeVar("Item")
Result = TypeVar("Result")

SAMPLE_RATE = 16_000
"""Samples per second of every waveform in this package (PSLA, section III-A)."""

LOWEST_RATE = 100
"""Samples per second below which a file is damaged: a small one would last for days."""
LONGEST = 3600.0
"""Seconds of a file that is taken into memory whole."""
LONGEST_CLIP = 600.0
"""Seconds of a clip that training reads: a model sees fewer, and what lasts for hours is not to take the memory."""
LOUDEST = 32.0
"""Samples of an array that are larger than this are not on the scale of [-1, 1]: 30 dB over full scale."""
_BLOCK = 1 << 20
"""Samples, over all channels, that are decoded at a time."""
_SIXTEEN_BITS = np.float32(2.0**-15)
_PLAIN = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
"""What a WAV file of one channel of 16-bit samples at 16 kHz says of its format."""


class AudioError(ValueError):
    """A file that gives no waveform; ``str`` is one sentence that starts with ``path`` and goes on with ``reason``."""

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}".rstrip()


def read(
    path: str | os.PathLike[str], *, channel: Literal["mean", "first"] = "mean", seconds: float = math.inf
) -> np.ndarray:
    """A file as a mono waveform.

    Args:
        path: WAV, FLAC, OGG, MP3 or anything else libsndfile reads, at any rate.
        channel: what becomes of several channels: their mean, or the first one alone (as the reference does).
        seconds: how much of its beginning; all of it unless said.

    Returns:
        float32 ``(samples,)`` at 16 kHz. Full scale is [-1, 1]; resampling (soxr, high quality) may go slightly beyond.

    Raises:
        AudioError: the file is missing, is not audio, is empty or holds samples that are not finite; or it is all
            wanted, and lasts more than an hour.
    """
    found, samples = [], 0
    for block in blocks(path, channel=channel):
        found.append(block)
        samples += len(block)
        if samples >= seconds * SAMPLE_RATE:
            break
        if samples > LONGEST * SAMPLE_RATE:
            raise AudioError(path, "is longer than an hour: cut it into clips, of which training sees the beginning.")
    whole = found[0] if len(found) == 1 else np.concatenate(found)
    return whole if math.isinf(seconds) else whole[: round(seconds * SAMPLE_RATE)]


def blocks(path: str | os.PathLike[str], *, channel: Literal["mean", "first"] = "mean") -> Iterator[np.ndarray]:
    """The waveform that :func:`read` gives, a block at a time: memory does not grow with the file.

    Args:
        path: as for :func:`read`.
        channel: likewise.

    Yields:
        float32 ``(samples,)`` at 16 kHz, a minute or less each, none of them empty.

    Raises:
        AudioError: as :func:`read`; a file that is broken further on gives blocks before that.
    """
    resampler, samples, given, rate = None, 0, 0, SAMPLE_RATE
    for mono, rate in _decoded(path, channel):
        samples += len(mono)
        resampler = resampler or Resampler(rate)
        for piece in resampler.pushed(mono):
            given += len(piece)
            yield piece
    if samples == 0 or resampler is None:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    rest = resampler.finish()
    if given + len(rest) == 0:
        raise AudioError(path, f"is too short ({samples} samples at {rate} Hz, none at 16 kHz): leave it out.")
    if len(rest):
        yield rest


class Resampler:
    """A mono waveform of any rate at 16 kHz, block by block: the same samples however it is cut into blocks."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, block: np.ndarray) -> np.ndarray:
        """What is certain after float32 ``(samples,)`` more; the filter holds some hundredths of a second back."""
        return block if self._stream is None else self._stream.resample_chunk(block)

    def pushed(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """The same, none of it empty, in pieces that stay small whatever the rate: at 1 Hz, a sample is a second."""
        size = len(block) if self._rate >= SAMPLE_RATE else max(1, int(_BLOCK * self._rate / SAMPLE_RATE))
        for start in range(0, len(block), size or 1):
            piece = self.push(block[start : start + size])
            if len(piece):
                yield piece

    def finish(self) -> np.ndarray:
        """The rest."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)


def _decoded(path: str | os.PathLike[str], channel: Literal["mean", "first"]) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of the file's mono waveform, float32 ``(samples,)``, each with its rate in Hz."""
    record = _record(path)
    with _bytes_of(path, record) as content:
        try:
            if content is not None and _is_plain(content):
                while len(block := np.frombuffer(content.read(2 * _BLOCK), "<i2")):
                    yield block * _SIXTEEN_BITS, SAMPLE_RATE
                return
        except (OSError, ValueError) as error:  # What was whole a moment ago is cut short, or its disk is gone.
            raise AudioError(path, _why_unreadable(path, error)) from error
    with opened(path, record) as file:
        for block in decoded(file, _BLOCK):
            mono = to_mono(block, channel)
            if not np.isfinite(mono).all():
                raise AudioError(
                    path, "holds samples that are not finite: export it again as 16-bit PCM, or leave it out."
                )
            yield mono, file.samplerate


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], record: memoryview | None = None) -> Iterator[soundfile.SoundFile]:
    """An audio file, open for reading.

    Args:
        path: as for :func:`read`.
        record: what is in it, where that has been read from a shard already.

    Raises:
        AudioError: it is missing, is not audio or has no rate of one, or what is read from it turns out to be none.
    """
    try:
        with soundfile.SoundFile(_source(path, record)) as file:
            if file.samplerate < LOWEST_RATE:
                raise AudioError(
                    path, f"says that it has {file.samplerate} samples per second, which is no sound: mend its header."
                )
            yield file
    except AudioError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise AudioError(path, _why_unreadable(path, error)) from error


def duration(path: str | os.PathLike[str]) -> float:
    """Seconds of sound in a file, as its header says: a quick look, without decoding it.

    Raises:
        AudioError: the file is missing, is not audio or is empty.
    """
    with opened(path) as file:
        seconds = file.frames / file.samplerate
    if seconds <= 0:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    return seconds


def header(path: str | os.PathLike[str]) -> tuple[float, int]:
    """A file's seconds, which may be wrong, and its samples per second; zeros where there is no header to read."""
    try:
        with opened(path) as file:
            return file.frames / file.samplerate, file.samplerate
    except AudioError:
        return 0.0, 0


def _source(path: str | os.PathLike[str], record: memoryview | None) -> str | bytes | io.BytesIO:
    """What soundfile opens for a path."""
    record = _record(path) if record is None else record
    if record is not None:
        return io.BytesIO(record)
    # A name that is not UTF-8 can only be opened as bytes, and on Windows only as text.
    return os.fspath(path) if sys.platform == "win32" else os.fsencode(path)


def _record(path: str | os.PathLike[str]) -> memoryview | None:
    """The audio file of a clip in a shard; None for the path of a file."""
    address = shards.parse(os.fspath(path))
    try:
        return None if address is None else shards.read(address)
    except shards.ShardError as error:
        raise AudioError(path, str(error)) from error


def _bytes_of(
    path: str | os.PathLike[str], record: memoryview | None
) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """A clip's file, to look into; None where there is none to be had, which :func:`opened` meets again, and says."""
    if record is not None:
        return io.BytesIO(record)
    if os.path.isfile(path):  # What is no file could be read only once.
        with contextlib.suppress(OSError):
            return open(path, "rb")
    return contextlib.nullcontext()


def _is_plain(file: BinaryIO) -> bool:
    """Whether it is a WAV file of one channel of 16-bit samples at 16 kHz; if so, just these are left to be read.

    There is nothing to decode, and libsndfile takes four times as long.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start, plain = file.read(12), False
    if (start[:4], start[8:]) != (b"RIFF", b"WAVE"):
        return False
    while len(chunk := file.read(8)) == 8:
        kind, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"data":
            return plain and length % 2 == 0 and file.tell() + length == size
        if kind == b"fmt ":
            plain = file.read(length) == _PLAIN
            continue
        file.seek(length + length % 2, os.SEEK_CUR)
    return False


def decoded(file: soundfile.SoundFile, samples: int) -> Iterator[np.ndarray]:
    """What is in a file, as float32 ``(frames, channels)``, so many samples at a time.

    Room for a whole file is never made on the word of its header, which may be wrong.
    """
    frames = max(1, samples // file.channels)
    # The same floats as libsndfile makes of 16 bits, in a quarter of its time.
    whole_numbers = file.subtype == "PCM_16"
    while True:
        block = file.read(frames, dtype="int16" if whole_numbers else "float32", always_2d=True)
        if len(block):
            yield block * _SIXTEEN_BITS if whole_numbers else block
        if len(block) < frames:
            return


def from_samples(samples: np.ndarray, rate: float, *, channel: Literal["mean", "first"] = "mean") -> np.ndarray:
    """A waveform in memory, as :func:`read` gives one of a file.

    Args:
        samples: ``(samples,)`` or ``(samples, channels)``. Floats have full scale [-1, 1]; 8, 16 and 32-bit integers
            are scaled by their range (unsigned 8 bit, as WAV has it, around 128), other types are refused.
        rate: samples per second.
        channel: as for :func:`read`.

    Returns:
        float32 ``(samples,)`` at 16 kHz.

    Raises:
        AudioError: the rate is not positive, or the array is of another rank or type, empty, not finite or not scaled.
    """
    name, array = "the array", np.asarray(samples)
    require_rate(name, rate)
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(
            name, f"has the shape {array.shape}: give (samples,) or (samples, channels), and some samples."
        )
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise AudioError(name, f"has the shape {array.shape}, more channels than samples: transpose it.")
    mono = mono_of(name, array, channel)
    if rate == SAMPLE_RATE:
        return mono
    resampled = soxr.resample(mono, rate, SAMPLE_RATE)
    if len(resampled) == 0:
        raise AudioError(name, f"is too short ({len(mono)} samples at {rate:g} Hz, none at 16 kHz): leave it out.")
    return resampled


def require_rate(name: str, rate: object) -> None:
    """Raises AudioError, about what is called `name`, unless `rate` is a positive number of samples per second."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < np.inf:
        raise AudioError(name, f"has the sample rate {rate!r}: give a positive number of samples per second.")


def mono_of(name: str, array: np.ndarray, channel: Literal["mean", "first"]) -> np.ndarray:
    """Samples ``(samples,)`` or ``(samples, channels)`` as :func:`from_samples` takes them, at their own rate.

    Returns:
        float32 ``(samples,)``, full scale [-1, 1].

    Raises:
        AudioError: about what is called `name`: another type, not finite or not scaled.
    """
    array = _scaled(name, array)
    if not np.isfinite(array).all():
        raise AudioError(name, "holds samples that are not finite: mend it first.")
    peak = float(np.abs(array).max(initial=0.0))
    if peak > LOUDEST:
        raise AudioError(name, f"holds samples as large as {peak:g}: scale it to [-1, 1], or pass integers.")
    return to_mono(array[:, None] if array.ndim == 1 else array, channel)


def _scaled(name: str, array: np.ndarray) -> np.ndarray:
    """Samples of any accepted type as float32, full scale [-1, 1]."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / np.float32(128)
    if array.dtype in (np.int8, np.int16, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise AudioError(name, f"is of type {array.dtype}: give floats in [-1, 1], or 8, 16 or 32-bit integers.")


def to_mono(block: np.ndarray, channel: Literal["mean", "first"]) -> np.ndarray:
    """``(frames, channels)`` -> ``(frames,)``."""
    channels = block.shape[1]
    if channel == "first" or channels == 1:
        return np.ascontiguousarray(block[:, 0])
    # Column by column: for stereo ten times as quick as block.mean(axis=1).
    return sum((block[:, c] for c in range(1, channels)), start=block[:, 0]) / np.float32(channels)


def _why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    try:
        size = os.stat(shards.file_of(os.fspath(path))).st_size
    except (OSError, ValueError):
        return "is missing: correct the path, or mount the disk that holds it."
    if os.path.isdir(path):
        return "is a folder: name an audio file."
    if size == 0:
        return "is an empty file: record or download it again, or leave it out."
    detail = getattr(error, "error_string", "") or str(error)
    return f"cannot be read as audio ({detail.strip().rstrip('.')}): convert it to WAV or FLAC, or leave it out."


def write_pcm16(path: str | os.PathLike[str], waveform: np.ndarray) -> None:
    """Writes a mono waveform as a 16-bit WAV file at 16 kHz; the file appears whole or not at all.

    Samples beyond [-1, 1) are clipped. What :func:`read` took from a 16-bit file at 16 kHz is written back unchanged.

    Args:
        path: where to; a file that is already there is replaced.
        waveform: float ``(samples,)``, full scale [-1, 1].

    Raises:
        AudioError: the waveform is not one-dimensional, is empty or holds samples that are not finite.
        OSError: the file cannot be written.
    """
    if waveform.ndim != 1 or waveform.size == 0:
        raise AudioError(path, f"cannot hold samples of shape {waveform.shape}: give one channel of at least 1 sample.")
    if not np.isfinite(waveform).all():
        raise AudioError(path, "cannot hold samples that are not finite: mend the waveform first.")
    folder, name = os.path.split(os.fspath(path))
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.part")
    try:
        with wave.open(aside, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(pcm16(waveform).tobytes())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


def pcm16(waveform: np.ndarray) -> np.ndarray:
    """A waveform as 16-bit integers, little-endian; samples beyond [-1, 1) are clipped."""
    return np.clip(np.rint(waveform.astype(np.float64) * 32768), -32768, 32767).astype("<i2")


def in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[Result]:
    """Does the same work on many files, in threads: reading, decoding and resampling all release the interpreter lock.

    The first exception of ``work``, or Ctrl-C, ends it: what has begun is finished, the rest is not begun.

    Args:
        work: called with each item.
        items: what to work on.
        description: what the progress bar on stderr says; it goes away at the end.
        workers: threads; None or 0 for a few more than there are cores.
        progress: whether to show the bar.

    Returns:
        What ``work`` returned, in the order of ``items``.
    """
    bar = Console(stderr=True)
    with ThreadPoolExecutor(workers or None) as pool:
        try:
            done = pool.map(work, items)
            hidden = not (progress and bar.is_terminal)
            return list(track(done, description, total=len(items), console=bar, transient=True, disable=hidden))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
