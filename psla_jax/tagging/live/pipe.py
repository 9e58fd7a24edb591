"""Audio from a pipe: WAV or headerless PCM, read sequentially and possibly without end."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from psla_jax.audio.decode import AudioError
from psla_jax.tagging.live.audio_queue import AudioQueue

READ_BYTES = 1 << 16
"""Maximum number of bytes per read; a read returns as soon as bytes are available."""
UNKNOWN_SIZE = 0x7FFF_0000
"""Sizes from here on, and 0, are placeholders: programs that stream WAV write the header before they know the size."""
MAX_CHUNK_BYTES = 1 << 24
"""Maximum size of a WAV chunk before the samples."""
FORMATS = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
"""Sample formats, as ffmpeg names them, by format tag and bits per sample of a WAV header."""
EXTENSIBLE = 0xFFFE
"""Format tag of WAVE_FORMAT_EXTENSIBLE, whose actual format tag comes later in the chunk."""


class ByteStream(Protocol):
    """A binary file that is read sequentially."""

    def read(self, size: int, /) -> bytes:
        """Returns between 1 and `size` bytes; no bytes at the end."""
        ...


@dataclass(frozen=True)
class Layout:
    """Encoding of the samples."""

    format: str
    """Sample format, as ffmpeg names it."""
    rate: int
    """Sample rate in Hz."""
    channels: int
    size: int | None = None
    """Number of bytes of samples; None to read until the end."""

    @property
    def sample_bytes(self) -> int:
        """Number of bytes of one sample of all channels."""
        return self.channels * int(self.format.strip("usfle")) // 8

    def decode(self, data: bytes) -> np.ndarray:
        """Converts the bytes of whole samples to an array ``(samples, channels)``."""
        if self.format == "s24le":
            padded = np.pad(np.frombuffer(data, np.uint8).reshape(-1, 3), ((0, 0), (1, 0)))
            return padded.view("<i4").reshape(-1, self.channels)
        kind, width = self.format[0].replace("s", "i"), self.sample_bytes // self.channels
        return np.frombuffer(data, f"<{kind}{width}").reshape(-1, self.channels)


class Pipe:
    """Audio that another program writes while it is read.

    `name` appears in messages, `rate` is in Hz; `notes` are sentences on problems, complete after the last block.
    """

    live = False

    def __init__(self, file: ByteStream, name: str, layout: Layout | None = None) -> None:
        """Reads the WAV header of the file called `name`; `layout` is given for headerless samples instead.

        Raises:
            AudioError: the WAV header is missing, broken, or of an unsupported sample format.
        """
        self._file, self.name = file, name
        self.layout = layout or _read_header(file, name)
        self.rate = self.layout.rate
        self.notes: list[str] = []

    def start(self, queue: AudioQueue) -> None:
        """Starts a thread that reads into the queue and waits while it is full."""
        threading.Thread(target=self._fill, args=(queue,), daemon=True, name="psla-pipe").start()

    def close(self) -> None:
        """Does nothing: a blocking read cannot be interrupted. The daemon thread ends with the pipe or the process."""

    def _fill(self, queue: AudioQueue) -> None:
        try:
            for block in self.blocks():
                if not queue.put(block):
                    return
            queue.close()
        except BaseException as error:  # The thread that takes the blocks raises it.
            queue.close(error)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the samples ``(samples, channels)`` as they arrive, then completes :attr:`notes`."""
        layout, read, buffer, total = self.layout, self._file.read, b"", 0
        while layout.size is None or total < layout.size:
            data = read(READ_BYTES if layout.size is None else min(READ_BYTES, layout.size - total))
            if not data:
                break
            total += len(data)
            buffer += data
            whole = len(buffer) // layout.sample_bytes * layout.sample_bytes
            if whole:
                yield layout.decode(buffer[:whole])
            buffer = buffer[whole:]
        while layout.size is not None and read(READ_BYTES):
            pass  # Chunks after the samples are read, so that the writing program does not block, and ignored.
        self._add_notes(total, len(buffer))

    def _add_notes(self, total: int, remainder: int) -> None:
        """Notes an incomplete last sample, fewer bytes than the header declares, and an empty pipe."""
        layout = self.layout
        if remainder:
            self.notes.append(
                f"{self.name} ended inside a sample: its last {remainder} bytes of {layout.sample_bytes} were ignored."
            )
        if layout.size is not None and total < layout.size:
            seconds, declared = (count / layout.sample_bytes / layout.rate for count in (total, layout.size))
            self.notes.append(
                f"{self.name} ended after {seconds:.1f} s of the {declared:.1f} s that its header declares."
            )
        if total < layout.sample_bytes:
            self.notes.append(f"{self.name} contains no samples.")


def open_source(source: str) -> tuple[ByteStream, str]:
    """Opens a source of bytes and returns it with its name: ``-`` is standard input, otherwise a named pipe or file.

    It is unbuffered: a read returns the available bytes, and a blocking read does not keep the process from exiting.

    Raises:
        AudioError: the source cannot be opened, or standard input is a terminal.
    """
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioError(
                "standard input", "is not a pipe: pipe audio into it, as in ffmpeg -i ... -f wav - | psla listen - ..."
            )
        # A descriptor of its own: the reading thread may outlive the caller's, whose number another file then gets.
        return open(os.dup(sys.stdin.fileno()), "rb", buffering=0), "standard input"
    try:
        return open(source, "rb", buffering=0), source
    except OSError as error:
        raise AudioError(
            source, f"cannot be read ({error.strerror}): correct the path, or pipe audio into psla listen -."
        ) from error


def _read_exactly(file: ByteStream, count: int) -> bytes:
    """Returns `count` bytes, or fewer if the file ends."""
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def _read_header(file: ByteStream, name: str) -> Layout:
    """Reads a WAV header up to the first sample."""
    start = _read_exactly(file, 12)
    if not start:
        raise AudioError(name, "is empty: check the program that writes it.")
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise AudioError(
            name,
            f"begins with {start[:4]!r}, which is not a WAV header: let ffmpeg write WAV (-f wav -), or give the "
            "format of headerless samples (--format s16le --rate 16000).",
        )
    fmt: bytes | None = None
    while True:
        chunk = _read_exactly(file, 8)
        if len(chunk) < 8:
            raise AudioError(name, "ends within its WAV header: write it again.")
        kind, size = struct.unpack("<4sI", chunk)
        if kind == b"data":
            break
        content = _read_exactly(file, size + size % 2) if size <= MAX_CHUNK_BYTES else b""
        if len(content) < size:
            raise AudioError(name, "ends within its WAV header: write it again.")
        fmt = content if kind == b"fmt " else fmt
    if fmt is None or len(fmt) < 16:
        raise AudioError(name, "has a WAV header without a sample format: write it again.")
    return _parse_fmt(name, fmt, None if size == 0 or size >= UNKNOWN_SIZE else size)


def _parse_fmt(name: str, fmt: bytes, size: int | None) -> Layout:
    """Returns the layout that the ``fmt`` chunk of a WAV header describes."""
    tag, channels, rate, _, sample_bytes, bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == EXTENSIBLE and len(fmt) >= 26:
        (tag,) = struct.unpack("<H", fmt[24:26])
    sample_format = FORMATS.get((tag, bits))
    if sample_format is None:
        raise AudioError(
            name,
            f"has {bits}-bit samples of WAV format tag {tag}, which pipes do not support: let ffmpeg write 16 bits "
            "(-c:a pcm_s16le).",
        )
    if not channels or not rate or sample_bytes != channels * bits // 8:
        layout = f"{channels} channels, {rate} Hz and {sample_bytes} bytes a sample"
        raise AudioError(name, f"has a WAV header of {layout}: write it again.")
    return Layout(sample_format, rate, channels, size)
