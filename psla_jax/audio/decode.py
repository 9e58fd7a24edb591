"""Decoding of audio files and arrays to mono waveforms at 16 kHz, whole or in blocks, and writing of 16-bit WAV files.

Every function that takes a path also accepts the address of a clip in a shard (:mod:`psla_jax.audio.shards`).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.progress import track

from psla_jax.audio import shards
from psla_jax.config import Channel
from psla_jax.runtime.files import atomic_path
from psla_jax.runtime.threads import in_order

StrPath = str | os.PathLike[str]
Item = TypeVar("Item")
Result = TypeVar("Result")

SAMPLE_RATE = 16_000
"""Sample rate of every waveform in this package, in Hz (PSLA, section III-A)."""

MIN_SAMPLE_RATE = 100
"""Lowest accepted sample rate in Hz. Damaged headers have lower ones, with which a small file lasts for days."""
MAX_SECONDS = 3600.0
"""Longest file that :func:`read` returns whole, in seconds."""
MAX_CLIP_SECONDS = 600.0
"""Seconds of a clip that training reads at most; models use less, and hours of audio would exhaust the memory."""
MAX_AMPLITUDE = 32.0
"""Largest magnitude of the samples in an array, 30 dB above full scale; larger ones are not scaled to [-1, 1]."""
_BLOCK = 1 << 20
"""Samples, summed over the channels, that are decoded at a time."""
_PCM16_SCALE = np.float32(2.0**-15)
_PCM16_FORMAT = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
"""The ``fmt`` chunk of a mono 16-bit PCM WAV file at 16 kHz."""


class AudioError(ValueError):
    """Audio that gives no waveform; its text is one sentence, ``path`` followed by ``reason``."""

    def __init__(self, path: StrPath, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}".rstrip()


def read(path: StrPath, *, channel: Channel = "mean", seconds: float = math.inf) -> np.ndarray:
    """Reads a file as a mono waveform, float32 ``(samples,)`` at 16 kHz.

    Full scale is [-1, 1], which resampling (soxr, high quality) may exceed slightly.

    Args:
        path: WAV, FLAC, OGG, MP3 or any other file that libsndfile reads, at any sample rate.
        channel: reduction of several channels: their mean, or the first one (as in the reference).
        seconds: duration to read, from the beginning; the whole file by default.

    Raises:
        AudioError: the file is missing, is not audio, is empty or holds samples that are not finite; or it is longer
            than an hour and ``seconds`` does not limit it.
    """
    pieces, samples = [], 0
    for block in blocks(path, channel=channel):
        pieces.append(block)
        samples += len(block)
        if samples >= seconds * SAMPLE_RATE:
            break
        if samples > MAX_SECONDS * SAMPLE_RATE:
            raise AudioError(path, "is longer than an hour: cut it into clips, training uses the beginning of each.")
    waveform = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return waveform if math.isinf(seconds) else waveform[: round(seconds * SAMPLE_RATE)]


def blocks(path: StrPath, *, channel: Channel = "mean", content: memoryview | None = None) -> Iterator[np.ndarray]:
    """Yields the waveform of :func:`read` in blocks, so that memory does not grow with the file.

    They are float32 ``(samples,)`` at 16 kHz, not empty and at most a minute each. Arguments and errors are those of
    :func:`read`; the blocks before a damaged part are yielded first. `content` is a file in memory, named by `path`.
    """
    resampler, decoded, yielded, rate = None, 0, 0, SAMPLE_RATE
    for mono, rate in _native_rate_blocks(path, channel, content):
        decoded += len(mono)
        resampler = resampler or Resampler(rate)
        for piece in resampler.push_in_pieces(mono):
            yielded += len(piece)
            yield piece
    if decoded == 0 or resampler is None:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    tail = resampler.finish()
    if yielded + len(tail) == 0:
        raise AudioError(path, f"is too short ({decoded} samples at {rate} Hz, none at 16 kHz): leave it out.")
    if len(tail):
        yield tail


class Resampler:
    """Streaming resampler of a mono waveform to 16 kHz; its output does not depend on the division into blocks."""

    def __init__(self, rate: float) -> None:
        """Accepts samples at `rate` Hz."""
        self._rate = rate
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, block: np.ndarray) -> np.ndarray:
        """Accepts float32 ``(samples,)`` and returns complete 16 kHz samples, delayed by hundredths of a second."""
        return block if self._stream is None else self._stream.resample_chunk(block)

    def push_in_pieces(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the result of :meth:`push` in non-empty pieces of bounded size: at 1 Hz a sample lasts a second."""
        size = len(block) if self._rate >= SAMPLE_RATE else max(1, int(_BLOCK * self._rate / SAMPLE_RATE))
        for start in range(0, len(block), size or 1):
            piece = self.push(block[start : start + size])
            if len(piece):
                yield piece

    def finish(self) -> np.ndarray:
        """Returns the remaining samples, float32 ``(samples,)`` at 16 kHz, at the end of the waveform."""
        empty = np.zeros(0, np.float32)
        return empty if self._stream is None else self._stream.resample_chunk(empty, last=True)


def _native_rate_blocks(
    path: StrPath, channel: Channel, content: memoryview | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields blocks of the mono waveform before resampling, float32 ``(samples,)``, each with its rate in Hz."""
    record = _record(path) if content is None else content
    with _open_binary(path, record) as file:
        try:
            if file is not None and _seek_pcm16(file):
                while len(block := np.frombuffer(file.read(2 * _BLOCK), "<i2")):
                    yield block * _PCM16_SCALE, SAMPLE_RATE
                return
        except (OSError, ValueError) as error:  # The file was truncated meanwhile, or its disk failed.
            raise AudioError(path, _unreadable_reason(path, error)) from error
    with open_audio(path, record) as audio:
        for block in read_blocks(audio, _BLOCK):
            mono = to_mono(block, channel)
            if not np.isfinite(mono).all():
                raise AudioError(path, "holds samples that are not finite: export it as 16-bit PCM, or leave it out.")
            yield mono, audio.samplerate


@contextlib.contextmanager
def open_audio(path: StrPath, record: memoryview | None = None) -> Iterator[soundfile.SoundFile]:
    """Opens an audio file for reading; `record` is its content, if it is in memory.

    Raises:
        AudioError: the file is missing, is not audio or has an invalid sample rate, or an operation on it in the
            ``with`` block fails.
    """
    # A name that is not UTF-8 can only be opened as bytes, and on Windows only as text.
    encode = os.fspath if sys.platform == "win32" else os.fsencode
    try:
        record = _record(path) if record is None else record
        with soundfile.SoundFile(encode(path) if record is None else io.BytesIO(record)) as file:
            if file.samplerate < MIN_SAMPLE_RATE:
                raise AudioError(path, f"has an invalid sample rate of {file.samplerate} Hz: repair its header.")
            yield file
    except AudioError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise AudioError(path, _unreadable_reason(path, error, in_memory=record is not None)) from error


def duration(path: StrPath) -> float:
    """Returns a file's duration in seconds by its header; raises AudioError if it is missing, not audio or empty."""
    with open_audio(path) as file:
        seconds = file.frames / file.samplerate
    if seconds <= 0:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    return seconds


def header(path: StrPath, content: memoryview | None = None) -> tuple[float, int]:
    """Returns duration in seconds and sample rate in Hz according to a file's header; zeros if it is unreadable."""
    try:
        with open_audio(path, content) as file:
            return file.frames / file.samplerate, file.samplerate
    except AudioError:
        return 0.0, 0


def _record(path: StrPath) -> memoryview | None:
    """Returns the content of a clip in a shard, or None for the path of a file."""
    address = shards.parse_address(os.fspath(path))
    try:
        return None if address is None else shards.read(address)
    except shards.ShardError as error:
        raise AudioError(path, str(error)) from error


def _open_binary(path: StrPath, record: memoryview | None) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """Opens a clip for reading bytes; None if that fails, in which case :func:`open_audio` raises the error."""
    if record is not None:
        return io.BytesIO(record)
    if os.path.isfile(path):  # Pipes and devices can be read only once.
        with contextlib.suppress(OSError):
            return open(path, "rb")
    return contextlib.nullcontext()


def _seek_pcm16(file: BinaryIO) -> bool:
    """Returns whether a file is a mono 16-bit PCM WAV file at 16 kHz, positioned at its samples in that case.

    Such files need no decoder; libsndfile takes four times as long.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start, matches = file.read(12), False
    if (start[:4], start[8:]) != (b"RIFF", b"WAVE"):
        return False
    while len(chunk := file.read(8)) == 8:
        kind, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"data":
            return matches and length % 2 == 0 and file.tell() + length == size
        if kind == b"fmt ":
            matches = file.read(length) == _PCM16_FORMAT
            continue
        file.seek(length + length % 2, os.SEEK_CUR)
    return False


def read_blocks(file: soundfile.SoundFile, samples: int) -> Iterator[np.ndarray]:
    """Yields the content of a file as float32 ``(frames, channels)`` blocks of at most `samples` samples.

    No memory is allocated according to the length in the header, which may be wrong.
    """
    frames = max(1, samples // file.channels)
    # Scaled here, 16-bit samples become the same floats as in libsndfile, in a quarter of the time.
    pcm16 = file.subtype == "PCM_16"
    while True:
        block = file.read(frames, dtype="int16" if pcm16 else "float32", always_2d=True)
        if len(block):
            yield block * _PCM16_SCALE if pcm16 else block
        if len(block) < frames:
            return


def from_samples(samples: np.ndarray, rate: float, *, channel: Channel = "mean", name: str = "the array") -> np.ndarray:
    """Converts an array of samples to a waveform as of :func:`read`, float32 ``(samples,)`` at 16 kHz.

    Args:
        samples: ``(samples,)`` or ``(samples, channels)``. Floats have full scale [-1, 1]; 8, 16 and 32-bit integers
            are scaled by their range (unsigned 8-bit around 128, as in WAV); other types are refused.
        rate: sample rate in Hz.
        channel: as for :func:`read`.
        name: what messages call the array.

    Raises:
        AudioError: the rate is not positive, or the array has another rank or type, is empty, not finite or not scaled.
    """
    array = np.asarray(samples)
    require_rate(name, rate)
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(name, f"has the shape {array.shape}: give (samples,) or (samples, channels), not empty.")
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise AudioError(name, f"has the shape {array.shape}, more channels than samples: transpose it.")
    mono = array_to_mono(name, array, channel)
    if rate == SAMPLE_RATE:
        return mono
    resampled = soxr.resample(mono, rate, SAMPLE_RATE)
    if len(resampled) == 0:
        raise AudioError(name, f"is too short ({len(mono)} samples at {rate:g} Hz, none at 16 kHz): leave it out.")
    return resampled


def require_rate(name: str, rate: object) -> None:
    """Raises AudioError for the audio called `name` unless `rate` is a positive number of samples per second."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < np.inf:
        raise AudioError(name, f"has the sample rate {rate!r}: give a positive number of samples per second.")


def array_to_mono(name: str, array: np.ndarray, channel: Channel) -> np.ndarray:
    """Converts an array that :func:`from_samples` accepts to float32 ``(samples,)`` at the same rate.

    Raises AudioError if the array, called `name` in the message, has another type, is not finite or not scaled.
    """
    array = _to_float32(name, array)
    if not np.isfinite(array).all():
        raise AudioError(name, "holds samples that are not finite: correct it first.")
    peak = float(np.abs(array).max(initial=0.0))
    if peak > MAX_AMPLITUDE:
        raise AudioError(name, f"holds samples as large as {peak:g}: scale it to [-1, 1], or pass integers.")
    return to_mono(array[:, None] if array.ndim == 1 else array, channel)


def _to_float32(name: str, array: np.ndarray) -> np.ndarray:
    """Converts samples of any accepted type to float32, full scale [-1, 1]."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / np.float32(128)
    if array.dtype in (np.int8, np.int16, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise AudioError(name, f"is of type {array.dtype}: give floats in [-1, 1], or 8, 16 or 32-bit integers.")


def to_mono(block: np.ndarray, channel: Channel) -> np.ndarray:
    """Reduces ``(frames, channels)`` to ``(frames,)``."""
    channels = block.shape[1]
    if channel == "first" or channels == 1:
        return np.ascontiguousarray(block[:, 0])
    # Summing the columns is ten times as fast as block.mean(axis=1) for stereo.
    return sum((block[:, c] for c in range(1, channels)), start=block[:, 0]) / np.float32(channels)


def _unreadable_reason(path: StrPath, error: Exception, *, in_memory: bool = False) -> str:
    """Returns the reason, for AudioError, why a path, or the content of a file in memory, cannot be read."""
    try:
        size = 1 if in_memory else os.stat(shards.storage_path(os.fspath(path))).st_size
    except (OSError, ValueError):
        return "is missing: correct the path, or mount the disk that holds it."
    if os.path.isdir(path):
        return "is a folder: name an audio file."
    if size == 0:
        return "is an empty file: record or download it again, or leave it out."
    detail = getattr(error, "error_string", "") or str(error)
    return f"cannot be read as audio ({detail.strip().rstrip('.')}): convert it to WAV or FLAC, or leave it out."


def write_pcm16(path: StrPath, waveform: np.ndarray) -> None:
    """Writes a waveform, float ``(samples,)``, as a 16-bit WAV file at 16 kHz; atomic, replacing an existing file.

    Samples beyond [-1, 1) are clipped. A waveform that :func:`read` returned for such a file is written back unchanged.

    Raises:
        AudioError: the waveform is not one-dimensional, is empty or holds samples that are not finite.
        OSError: the file cannot be written.
    """
    if waveform.ndim != 1 or waveform.size == 0:
        raise AudioError(path, f"cannot hold samples of shape {waveform.shape}: give one channel of at least 1 sample.")
    if not np.isfinite(waveform).all():
        raise AudioError(path, "cannot hold samples that are not finite: correct the waveform first.")
    with atomic_path(path) as temporary, wave.open(temporary, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "not compressed"))
        file.writeframes(pcm16(waveform).tobytes())


def pcm16(waveform: np.ndarray) -> np.ndarray:
    """Converts a float waveform to little-endian 16-bit integers, clipping samples beyond [-1, 1)."""
    return np.clip(np.rint(waveform.astype(np.float64) * 32768), -32768, 32767).astype("<i2")


def in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[Result]:
    """Returns the results of a function for many files, in order, computed in threads.

    Reading, decoding and resampling release the interpreter lock. The first exception of ``work``, or Ctrl-C, ends the
    iteration: calls that have started finish, others never start.

    Args:
        work: called with each item.
        items: its arguments.
        description: text of the progress bar, which is shown on stderr and removed at the end.
        workers: number of threads; None or 0 for four more than the cores, at most 32.
        progress: whether to show the bar.
    """
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    with contextlib.closing(in_order(work, items, workers or min(32, (os.cpu_count() or 1) + 4))) as results:
        return list(track(results, description, total=len(items), console=console, transient=True, disable=hidden))
