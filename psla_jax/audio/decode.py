"""Decoding of audio files and arrays to mono waveforms, whole or in blocks, and writing of 16-bit WAV files.

Waveforms have the sample rate that the caller asks for, 16 kHz by default; files are resampled to it.

Every function that takes a path also accepts the address of a clip in a shard (:mod:`psla_jax.audio.shards`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import struct
import sys
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.progress import track

from psla_jax.audio import file_kinds, shards
from psla_jax.audio.ffmpeg import DecodingError
from psla_jax.audio.layout import find_wav_data
from psla_jax.audio.reading import MAX_AMPLITUDE, AudioError, Reading, peak
from psla_jax.audio.resampling import SAMPLE_RATE, Resampler
from psla_jax.audio.sources import Source, open_source
from psla_jax.config import Channel
from psla_jax.runtime.files import atomic_path
from psla_jax.runtime.streams import is_stream
from psla_jax.runtime.threads import in_order

StrPath = str | os.PathLike[str]
Item = TypeVar("Item")
Result = TypeVar("Result")

MIN_SAMPLE_RATE = 100
"""Lowest accepted sample rate in Hz. Damaged headers have lower ones, with which a small file lasts for days."""
MAX_SECONDS = 3600.0
"""Longest file that :func:`read` returns whole, in seconds."""
MAX_CLIP_SECONDS = 600.0
"""Seconds of a clip that training reads at most; models use less, and hours of audio would exhaust the memory."""
MAX_FILE_AMPLITUDE = 2.0**32
"""Largest magnitude of the samples in a file: integers that were not scaled are smaller. Beyond, features overflow."""
_BLOCK = 1 << 20
"""Samples, summed over the channels, that are decoded at a time."""
_PCM16_SCALE = np.float32(2.0**-15)


def read(
    path: StrPath,
    *,
    channel: Channel = "mean",
    seconds: float = math.inf,
    reading: Reading | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Reads a file as a mono waveform, float32 ``(samples,)`` at `sample_rate`.

    Full scale is [-1, 1], which resampling (soxr, high quality) may exceed slightly. A file is read to the end of its
    sound, whatever length its header states. Damaged parts become silence where the format tells how long they are.

    Args:
        path: WAV, FLAC, OGG, MP3, M4A or any other file that libsndfile or FFmpeg reads, at any sample rate.
        channel: reduction of several channels: their mean, or the first one (as in the reference).
        seconds: duration to read, from the beginning; the whole file by default.
        reading: receives the notes on the file.
        sample_rate: samples per second of the waveform.

    Raises:
        AudioError: the file is missing, is not audio, is empty or holds samples that no recording can have; or it is
            longer than an hour and ``seconds`` does not limit it.
    """
    return join(path, blocks(path, channel=channel, reading=reading, sample_rate=sample_rate), seconds, sample_rate)


def join(
    path: StrPath, waveform_blocks: Iterable[np.ndarray], seconds: float = math.inf, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Returns the first `seconds` of a waveform in blocks, that of `path`, with the errors of :func:`read`."""
    pieces, samples = [], 0
    for block in waveform_blocks:
        pieces.append(block)
        samples += len(block)
        if samples >= seconds * sample_rate:
            break
        if samples > MAX_SECONDS * sample_rate:
            raise AudioError(path, "is longer than an hour: cut it into clips, training uses the beginning of each.")
    waveform = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return waveform if math.isinf(seconds) else waveform[: round(seconds * sample_rate)]


def blocks(
    path: StrPath,
    *,
    channel: Channel = "mean",
    reading: Reading | None = None,
    content: memoryview | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> Iterator[np.ndarray]:
    """Yields the waveform of :func:`read` in blocks, so that memory does not grow with the file.

    They are float32 ``(samples,)``, not empty and at most a minute each. Arguments and errors are those of
    :func:`read`; `content` is a file in memory, named by `path`.
    """
    decoded, yielded, rate = 0, 0, sample_rate
    native = _native_rate_blocks(path, channel, reading or Reading(), content, sample_rate)
    for rate, group in itertools.groupby(native, key=lambda block: block[1]):
        resampler = Resampler(rate, sample_rate)
        for mono, _ in group:
            decoded += len(mono)
            for piece in resampler.push_in_pieces(mono):
                yielded += len(piece)
                yield piece
        tail = resampler.finish()
        yielded += len(tail)
        if len(tail):
            yield tail
    if decoded == 0:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    if yielded == 0:
        reason = f"is too short ({decoded} samples at {rate} Hz, none at {sample_rate / 1000:g} kHz): leave it out."
        raise AudioError(path, reason)


def _native_rate_blocks(
    path: StrPath, channel: Channel, reading: Reading, content: memoryview | None, sample_rate: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields blocks of the mono waveform before resampling, float32 ``(samples,)``, each with its rate in Hz."""
    record = _record(path) if content is None else content
    with _open_binary(path, record) as file:
        try:
            if file is not None and _seek_pcm16(file, sample_rate):
                reading.rate = sample_rate
                while len(block := np.frombuffer(file.read(2 * _BLOCK), "<i2")):
                    yield block * _PCM16_SCALE, sample_rate
                return
        except (OSError, ValueError) as error:  # The file was truncated meanwhile, or its disk failed.
            raise AudioError(path, _unreadable_reason(path, error, record)) from error
    with open_audio(path, record) as audio:
        yield from mono_blocks(audio, path, channel, reading, _BLOCK)


def mono_blocks(
    audio: Source, path: StrPath, channel: Channel, reading: Reading, samples: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields an open file as :func:`read_blocks`, mixed down to float32 ``(frames,)``; `reading` receives notes."""
    seconds = 0.0
    for block, rate in read_blocks(audio, samples):
        mono = to_mono(block, channel)
        require_plausible(path, block, mono, seconds, rate)
        seconds += len(mono) / rate
        reading.rate = min(reading.rate or rate, rate)
        reading.add(block, mono)
        yield mono, rate
    reading.notes += audio.notes


def require_plausible(path: StrPath, block: np.ndarray, mono: np.ndarray, start: float, rate: float) -> None:
    """Raises AudioError if `mono`, the mixdown of the block that begins at `start` seconds, is not finite or huge.

    `block` is ``(frames, channels)``, `mono` ``(frames,)``; the limit is :data:`MAX_FILE_AMPLITUDE`.
    """
    if peak(mono) <= MAX_FILE_AMPLITUDE:  # False for NaN.
        return
    position = int(np.argmin(np.abs(mono) <= MAX_FILE_AMPLITUDE))
    value = block[position, np.abs(block[position]).argmax()]
    described = f"infinite or beyond {np.finfo(np.float32).max:.1e}" if np.isinf(value) else f"{value:g}"
    raise AudioError(
        path,
        f"holds samples that are not finite or too large for a recording, the first {described} at "
        f"{start + position / rate:.3f} s: export it again as 16-bit PCM, or leave it out.",
    )


@contextlib.contextmanager
def open_audio(path: StrPath, record: memoryview | None = None) -> Iterator[Source]:
    """Opens an audio file for reading; `record` is its content, if it is in memory.

    Raises:
        AudioError: the file is missing, is not audio or has an invalid sample rate, or an operation on it in the
            ``with`` block fails.
    """
    # A name that is not UTF-8 can only be opened as bytes, and on Windows only as text.
    encode = os.fspath if sys.platform == "win32" else os.fsencode
    try:
        record = _record(path) if record is None else record
        if record is None and is_stream(path):  # Opening a pipe would wait for a program that writes to it.
            raise AudioError(path, "is a pipe or a device: save the sound to a file, or pipe it into psla tag.")
        with _open_binary(path, record) as file, open_source(encode(path), file) as source:
            if source.rate < MIN_SAMPLE_RATE:
                raise AudioError(path, f"has an invalid sample rate of {source.rate} Hz: repair its header.")
            yield source
    except AudioError:
        raise
    except (soundfile.SoundFileError, DecodingError, OSError, TypeError, ValueError) as error:
        raise AudioError(path, _unreadable_reason(path, error, record)) from error


def duration(path: StrPath) -> float:
    """Returns a file's duration in seconds; raises AudioError if it is missing, not audio or empty.

    It is read from the header, or counted without decoding where there is none or a wrong one.
    """
    with open_audio(path) as audio:
        seconds = audio.seconds()
    if seconds <= 0:
        raise AudioError(path, "holds no samples: record or download it again, or leave it out.")
    return seconds


def header(path: StrPath, content: memoryview | None = None) -> tuple[float, int]:
    """Returns duration in seconds and sample rate in Hz according to a file's header; zeros if it is unreadable."""
    try:
        with open_audio(path, content) as audio:
            return audio.seconds(), audio.rate
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


def _seek_pcm16(file: BinaryIO, sample_rate: int) -> bool:
    """Returns whether a file is a mono 16-bit PCM WAV file at that rate, positioned at its samples in that case.

    Such files need no decoder; libsndfile takes four times as long.
    """
    size = file.seek(0, os.SEEK_END)
    data = find_wav_data(file)
    if data is None or data.format_chunk != struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16):
        return False
    return data.length % 2 == 0 and data.start + data.length == size


def read_blocks(audio: Source, samples: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the content of a file as float32 ``(frames, channels)``, in blocks of about `samples` samples.

    Each block comes with its rate in Hz; files that are joined from several can have several rates.
    """
    for block, rate in audio.blocks(samples):
        if len(block):
            yield _to_float32("the file", block), rate


def from_samples(
    samples: np.ndarray,
    rate: float,
    *,
    channel: Channel = "mean",
    name: str = "the array",
    reading: Reading | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Converts an array of samples to a waveform as of :func:`read`, float32 ``(samples,)`` at `sample_rate`.

    Args:
        samples: ``(samples,)`` or ``(samples, channels)``. Floats have full scale [-1, 1]; 8, 16 and 32-bit integers
            are scaled by their range (unsigned 8-bit around 128, as in WAV); other types are refused.
        rate: sample rate of the array in Hz.
        channel: as for :func:`read`.
        name: what messages call the array.
        reading: receives the peaks of the channels.
        sample_rate: samples per second of the waveform.

    Raises:
        AudioError: the rate is not positive, or the array has another rank or type, is empty, not finite or not scaled.
    """
    array = np.asarray(samples)
    require_rate(name, rate)
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(name, f"has the shape {array.shape}: give (samples,) or (samples, channels), not empty.")
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise AudioError(name, f"has the shape {array.shape}, more channels than samples: transpose it.")
    mono = array_to_mono(name, array, channel, reading)
    if rate == sample_rate:
        return mono
    resampled = soxr.resample(mono, rate, sample_rate)
    if len(resampled) == 0:
        reason = f"is too short ({len(mono)} samples at {rate:g} Hz, none at {sample_rate / 1000:g} kHz): leave it out."
        raise AudioError(name, reason)
    return resampled


def require_rate(name: str, rate: object) -> None:
    """Raises AudioError for the audio called `name` unless `rate` is a positive number of samples per second."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < np.inf:
        raise AudioError(name, f"has the sample rate {rate!r}: give a positive number of samples per second.")


def array_to_mono(name: str, array: np.ndarray, channel: Channel, reading: Reading | None = None) -> np.ndarray:
    """Converts an array that :func:`from_samples` accepts to float32 ``(samples,)`` at the same rate.

    `reading` receives the peaks of the channels. Raises AudioError if the array, called `name` in the message, has
    another type, is not finite or not scaled.
    """
    given, array = array, _to_float32(name, array)
    finite = np.isfinite(array)
    if not finite.all():
        first = np.unravel_index(finite.argmin(), array.shape)
        what = f"holds samples that are not finite or too large, the first {given[first]:g} at sample {first[0]}"
        raise AudioError(name, f"{what}: correct it first.")
    magnitude = np.abs(array)
    largest = float(magnitude.max(initial=0.0))
    if largest > MAX_AMPLITUDE:
        position = np.unravel_index(magnitude.argmax(), array.shape)[0]
        what = f"holds samples as large as {largest:g}, at sample {position}"
        raise AudioError(name, f"{what}: scale it to [-1, 1], or pass integers.")
    block = array[:, None] if array.ndim == 1 else array
    mono = to_mono(block, channel)
    if reading is not None:
        reading.add(block, mono)
    return mono


def _to_float32(name: str, array: np.ndarray) -> np.ndarray:
    """Converts samples of any accepted type to float32, full scale [-1, 1]."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        with np.errstate(over="ignore"):  # Values beyond float32 become infinite, which is refused later.
            return array.astype(np.float32, copy=False)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / np.float32(128)
    if array.dtype == np.int16:
        return array * _PCM16_SCALE
    if array.dtype in (np.int8, np.int32):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise AudioError(name, f"is of type {array.dtype}: give floats in [-1, 1], or 8, 16 or 32-bit integers.")


def to_mono(block: np.ndarray, channel: Channel) -> np.ndarray:
    """Reduces ``(frames, channels)`` to ``(frames,)``."""
    channels = block.shape[1]
    if channel == "first" or channels == 1:
        return np.ascontiguousarray(block[:, 0])
    # Summing the columns is ten times as fast as block.mean(axis=1) for stereo.
    return sum((block[:, c] for c in range(1, channels)), start=block[:, 0]) / np.float32(channels)


def _unreadable_reason(path: StrPath, error: Exception, record: memoryview | None) -> str:
    """Returns the reason, for AudioError, why a path, or the content of a file in memory, cannot be read."""
    try:
        size = os.stat(shards.storage_path(os.fspath(path))).st_size if record is None else 1
    except (OSError, ValueError):
        return "is missing: correct the path, or mount the disk that holds it."
    if record is None and os.path.isdir(path):
        return "is a folder: name an audio file."
    if size == 0:
        return "is an empty file: record or download it again, or leave it out."
    known = None if isinstance(error, OSError) else file_kinds.describe(_head(path, record))
    if known:
        return f"cannot be read as audio ({known[0]}): {known[1]}."
    detail = getattr(error, "error_string", "") or str(error)
    # libsndfile takes the content of some ordinary files for damaged MP3.
    if any(text in detail for text in ("not a regular file", "internal error")):
        detail = "Format not recognised"
    return f"cannot be read as audio ({detail.strip().rstrip('.')}): convert it to WAV or FLAC, or leave it out."


def _head(path: StrPath, record: memoryview | None) -> bytes:
    """Returns the first bytes of a file; none if they cannot be read again."""
    with contextlib.suppress(OSError, AudioError), _open_binary(path, record) as file:
        return file.read(file_kinds.HEAD_BYTES) if file is not None else b""
    return b""


def write_pcm16(path: StrPath, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes a waveform, float ``(samples,)``, as a 16-bit WAV file; atomic, replacing an existing file.

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
        file.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))
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
    console = Console(emoji=False, stderr=True)
    hidden = not (progress and console.is_terminal)
    with contextlib.closing(in_order(work, items, workers or min(32, (os.cpu_count() or 1) + 4))) as results:
        return list(track(results, description, total=len(items), console=console, transient=True, disable=hidden))
