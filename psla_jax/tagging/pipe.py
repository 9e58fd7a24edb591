"""Sound from a pipe, which cannot be wound back and may never end: WAV as it streams, or bare samples."""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from psla_jax.audio import AudioError
from psla_jax.tagging.inbox import Inbox

CHUNK = 1 << 16
"""Bytes that are asked for at a time; what is there is taken."""
UNKNOWN_FROM = 0x7FFF_0000
"""A header that promises so many bytes or more, or none, was written before anybody knew how many would come."""
LONGEST_HEADER = 1 << 24
"""Bytes before the samples, at most."""
TAGS = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
"""From the tag of a WAV header and its bits per sample to a name of ours (and of ffmpeg)."""
EXTENSIBLE = 0xFFFE


class Bytes(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At least one byte and at most so many; none at the end."""
        ...


@dataclass(frozen=True)
class Layout:
    """How bytes are to be read."""

    format: str
    rate: int
    channels: int
    size: int | None = None
    """Bytes of samples; None for all there are."""

    @property
    def frame(self) -> int:
        """Bytes of a sample of every channel."""
        return self.channels * int(self.format.strip("usfle")) // 8

    def decoded(self, data: bytes) -> np.ndarray:
        """Whole frames as numbers, ``(samples, channels)``."""
        if self.format == "s24le":
            triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
            wide = np.zeros((len(triples), 4), np.uint8)
            wide[:, 1:] = triples
            return wide.view("<i4").reshape(-1, self.channels)
        kind = {"u": "u", "s": "i", "f": "f"}[self.format[0]]
        width = int(self.format.strip("usfle")) // 8
        return np.frombuffer(data, f"<{kind}{width}").reshape(-1, self.channels)


class Pipe:
    """Sound that a program writes while it is read.

    Attributes:
        name: for messages.
        layout: of the samples.
        notes: what was odd at the end, a sentence each; empty before.
    """

    live = False

    def __init__(self, file: Bytes, name: str, layout: Layout | None = None) -> None:
        """Reads the header, if there is one.

        Args:
            file: opened for reading bytes.
            name: of it.
            layout: of bare samples; None for WAV.

        Raises:
            AudioError: there is no WAV header, or one of samples that are not read here.
        """
        self._file, self.name = file, name
        self.layout = layout or _header(file, name)
        self.notes: list[str] = []

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.layout.rate

    def start(self, inbox: Inbox) -> None:
        """Reads in a thread from now on, as far ahead as the inbox lets it."""
        threading.Thread(target=self._read, args=(inbox,), daemon=True, name="psla-pipe").start()

    def close(self) -> None:
        """The thread ends with the program or the pipe: a read that waits cannot be called off."""

    def _read(self, inbox: Inbox) -> None:
        try:
            for block in self.blocks():
                if not inbox.put(block):
                    return
            inbox.end()
        except BaseException as error:  # told by the thread that takes the blocks
            inbox.end(error)

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples ``(samples, channels)`` as they arrive; at the end, :attr:`notes` says what was odd."""
        layout, held, got = self.layout, b"", 0
        read = self._file.read
        while layout.size is None or got < layout.size:
            data = read(CHUNK if layout.size is None else min(CHUNK, layout.size - got))
            if not data:
                break
            got += len(data)
            held += data
            whole = len(held) // layout.frame * layout.frame
            if whole:
                yield layout.decoded(held[:whole])
            held = held[whole:]
        while layout.size is not None and read(CHUNK):
            pass  # What follows the samples is text, or what the next program wants to get rid of.
        self._note_the_end(got, len(held))

    def _note_the_end(self, got: int, odd: int) -> None:
        layout = self.layout
        if odd:
            self.notes.append(
                f"{self.name} ended inside a sample: its last {odd} bytes of {layout.frame} were left out."
            )
        if layout.size is not None and got < layout.size:
            seconds, promised = (bytes_ / layout.frame / layout.rate for bytes_ in (got, layout.size))
            self.notes.append(f"{self.name} ended after {seconds:.1f} s, of {promised:.1f} s that its header promises.")
        if got < layout.frame:
            self.notes.append(f"{self.name} held no samples.")


def opened(source: str) -> tuple[Bytes, str]:
    """The bytes of a source, and what it is called: ``-`` is standard input, all else a named pipe or a file.

    Nothing is buffered here: a read gives what there is, and one that waits does not keep the program from ending.

    Raises:
        AudioError: it cannot be read, or a person sits at its other end.
    """
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioError(
                "standard input", "is no pipe: ffmpeg -i ... -f wav - | psla listen - --model ... makes one."
            )
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False), "standard input"
    try:
        return open(source, "rb", buffering=0), source
    except OSError as error:
        raise AudioError(
            source, f"cannot be read ({error.strerror}): correct the path, or pipe sound into -."
        ) from error


def _exactly(file: Bytes, count: int) -> bytes:
    """So many bytes, or fewer where the pipe ends."""
    got = b""
    while len(got) < count and (more := file.read(count - len(got))):
        got += more
    return got


def _header(file: Bytes, name: str) -> Layout:
    """Reads a WAV header up to the first sample."""
    start = _exactly(file, 12)
    if not start:
        raise AudioError(name, "is empty: nothing was written to it.")
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise AudioError(
            name,
            f"begins with {start[:4]!r}, which is no WAV header: let ffmpeg write one (-f wav -), or name the format "
            "of bare samples (--format s16le --rate 16000).",
        )
    described: bytes | None = None
    while True:
        chunk = _exactly(file, 8)
        if len(chunk) < 8:
            raise AudioError(name, "ended within its WAV header: write it again.")
        kind, size = struct.unpack("<4sI", chunk)
        if kind == b"data":
            break
        content = _exactly(file, size + size % 2) if size <= LONGEST_HEADER else b""
        if len(content) < size:
            raise AudioError(name, "ended within its WAV header: write it again.")
        described = content if kind == b"fmt " else described
    if described is None or len(described) < 16:
        raise AudioError(name, "does not say in its WAV header how its samples are written: write it again.")
    return _described(name, described, None if size == 0 or size >= UNKNOWN_FROM else size)


def _described(name: str, described: bytes, size: int | None) -> Layout:
    """The layout that the ``fmt`` chunk of a header tells of."""
    tag, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", described[:16])
    if tag == EXTENSIBLE and len(described) >= 26:
        (tag,) = struct.unpack("<H", described[24:26])
    kind = TAGS.get((tag, bits))
    if kind is None:
        raise AudioError(
            name,
            f"holds {bits}-bit samples of WAV type {tag}, which are not read from a pipe: let ffmpeg write 16 bits "
            "(-c:a pcm_s16le).",
        )
    if not channels or not rate or frame != channels * bits // 8:
        raise AudioError(
            name, f"has {channels} channels, {rate} Hz and {frame} bytes a sample in its WAV header: write it again."
        )
    return Layout(kind, rate, channels, size)
