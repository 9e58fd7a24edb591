"""Finds the sound in files whose header does not tell where it ends: joined files and WAV files of unknown length."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_CHUNK = 1 << 20
"""Number of bytes that are searched at a time."""
_OGG_PAGE, _OGG_HEAD = b"OggS\0", 27
"""Beginning of a page, and bytes of its header before the lengths of its segments."""
_OGG_FIRST, _OGG_LAST = 2, 4
"""Flags of the first and the last page of a stream."""
_FLAC_START = b"fLaC\0\0\0\x22"
"""Signature of a FLAC file and the head of its first block, which no sound contains except by a chance of 2^-64."""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_TAG_HEAD, _ID3V1 = 32, 128
"""Bytes of the header of an APE tag, and of an ID3v1 tag."""
_STATED_SIZES: dict[bytes, Callable[[bytes], int]] = {
    b"FORM": lambda head: 8 + int.from_bytes(head[4:8]) + head[7] % 2,
    b".snd": lambda head: int.from_bytes(head[4:8]) + int.from_bytes(head[8:12]),
    b"RF64": lambda head: 8 + int.from_bytes(head[20:28], "little"),
    b"riff": lambda head: -(-int.from_bytes(head[16:24], "little") // 8) * 8,
}
"""Bytes of an AIFF, AU, RF64 or Wave64 file according to its beginning, by its first bytes."""
_UNNOTICED = 0.1
"""Seconds of bytes after the samples of a WAV file that are ignored, such as padding."""
PLACEHOLDER = 0x7F000000
"""Stated lengths from here on, and 0, are placeholders of programs that do not know the length, as for a pipe."""


@dataclass(frozen=True)
class Layout:
    """Where the sound in a file is."""

    parts: tuple[tuple[int, int], ...]
    """First byte and end of each of the joined files, which are decoded one after the other."""
    has_end: bool = True
    """False for an Ogg file that ends within a page and without the mark of the end, or a CAF file within a chunk."""
    intact: bool = True
    """False for an Ogg file with a wrong checksum, or with other bytes between its pages."""
    length_known: bool = True
    """False for a WAV file whose samples continue behind the length in its header."""
    overrun: tuple[float, float] | None = None
    """Seconds of samples that the header of such a file states, and of those behind; None for a placeholder."""


@dataclass
class Section:
    """Bytes of a file from `start` to `stop`, as a file without a name, from which a decoder would guess the format."""

    file: BinaryIO
    start: int
    stop: int
    position: int = 0

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes from the position."""
        self.file.seek(self.start + self.position)
        data = self.file.read(min(size, max(self.stop - self.start - self.position, 0)))
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position, relative to the start of the section, and returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.stop - self.start}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """Returns the position."""
        return self.position


@dataclass(frozen=True)
class WavData:
    """The samples of a WAV file according to its header."""

    format_chunk: bytes
    """Content of the ``fmt`` chunk."""
    start: int
    """Position of the first sample, in bytes."""
    length: int
    """Number of bytes of samples that the header states."""


def find_layout(file: BinaryIO) -> Layout:
    """Returns the layout of a seekable file; its position changes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    signature = head[4:] if head.endswith(b"ftyp") else head[:4]
    if signature in _STATED_SIZES:
        return _layout_by_sizes(file, size, signature)
    find = _FINDERS.get(signature)
    return Layout(((0, size),)) if find is None else find(file, size)


def find_wav_data(file: BinaryIO, start: int = 0) -> WavData | None:
    """Returns the samples of a WAV file that begins at `start` and moves there; None for another or a damaged file."""
    file.seek(start)
    head, format_chunk = file.read(12), b""
    if (head[:4], head[8:]) != (b"RIFF", b"WAVE"):
        return None
    while len(chunk := file.read(8)) == 8:
        kind, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"data":
            return WavData(format_chunk, file.tell(), length)
        if kind == b"fmt ":
            format_chunk = file.read(length)
            continue
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _ogg_layout(file: BinaryIO, size: int) -> Layout:
    """Divides an Ogg file where new streams begin; the streams of a video begin together, with a page each."""
    flags, end, starts, intact = _OGG_FIRST, 0, [0], True
    for position, page, has_right_checksum in _ogg_pages(file):
        previous, flags = flags, page[5]
        if flags & _OGG_FIRST and not previous & _OGG_FIRST:
            starts.append(position)
        intact = intact and position == end and has_right_checksum
        end = position + len(page)
    return Layout(_parts(starts, size), has_end=bool(flags & _OGG_LAST) or end == size, intact=intact)


def _ogg_pages(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Yields the complete pages of an Ogg file, each with its position and whether its checksum is right.

    Bytes between pages are skipped. A damaged page may state a wrong length: the next one is searched within it.
    """
    file.seek(0)
    start, buffer, at_end = 0, b"", False
    while not at_end:
        data = file.read(_CHUNK)
        buffer, first, at_end = buffer + data, 0, not data
        while (position := buffer.find(_OGG_PAGE, first)) >= 0:
            head = position + _OGG_HEAD
            content = head + int.from_bytes(buffer[head - 1 : head])  # After the lengths of the segments.
            end = content + sum(buffer[head:content])
            if end > len(buffer) and not at_end:
                break
            page = buffer[position:end]
            has_right_checksum = end <= len(buffer) and _has_right_checksum(page)
            if end <= len(buffer):
                yield start + position, page, has_right_checksum
            first = end if has_right_checksum else position + len(_OGG_PAGE)
        first = position if position >= 0 else max(first, len(buffer) - len(_OGG_PAGE))
        start, buffer = start + first, buffer[first:]


def _has_right_checksum(page: bytes) -> bool:
    """Returns whether an Ogg page has the checksum in its header: CRC-32 of reversed bits, with the checksum as 0."""
    content = page[:22] + bytes(4) + page[26:]
    checksum = zlib.crc32(content.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{checksum:032b}"[::-1], 2) == int.from_bytes(page[22:26], "little")


def _flac_layout(file: BinaryIO, size: int) -> Layout:
    """Divides a file where another FLAC file is appended."""
    file.seek(0)
    starts, start, buffer = list[int](), 0, b""
    while data := file.read(_CHUNK):
        buffer, position = buffer + data, -1
        while (position := buffer.find(_FLAC_START, position + 1)) >= 0:
            starts.append(start + position)
        kept = len(_FLAC_START) - 1
        start, buffer = start + max(len(buffer) - kept, 0), buffer[-kept:]
    return Layout(_parts(sorted({0, *starts}), size))


def _layout_by_sizes(file: BinaryIO, size: int, signature: bytes) -> Layout:
    """Divides a file where another one of the same format is appended, by the sizes in their first 32 bytes."""
    starts, end = list[int](), 0
    while end < size:
        file.seek(end)
        head = file.read(32)
        if not head.startswith(signature):
            break
        starts.append(end)
        end += max(_STATED_SIZES[signature](head), len(head))
    return Layout(_parts(starts, size))


def _caf_layout(file: BinaryIO, size: int) -> Layout:
    """Divides a file where another CAF file is appended."""
    starts, end = list[int](), 0
    while end < size:
        file.seek(end)
        head = file.read(12)
        if head.startswith(b"caff"):
            starts.append(end)
            end += 8
            continue
        length = int.from_bytes(head[4:], signed=True)
        if not _is_chunk_name(head[:4]) or length < 0:  # Data of another kind, or sound up to the end of the file.
            return Layout(_parts(starts, size))
        end += 12 + length
    return Layout(_parts(starts, size), has_end=end <= size)


def _mp4_layout(file: BinaryIO, size: int) -> Layout:
    """Divides a file where another MP4 file is appended, if the one before has a description of its tracks."""
    starts, end, length, is_described = [0], 0, 8, False
    while end < size and length >= 8:  # A length of 0 is that of a box up to the end of the file.
        file.seek(end)
        head = file.read(16)
        if head[4:8] == b"ftyp" and is_described:
            starts.append(end)
        is_described = head[4:8] == b"moov" or (is_described and head[4:8] != b"ftyp")
        length = int.from_bytes(head[:4])
        length = int.from_bytes(head[8:]) if length == 1 else length
        end += length
    return Layout(_parts(starts, size))


def _is_chunk_name(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable()


def _wav_layout(file: BinaryIO, size: int) -> Layout:
    """Divides a file where another WAV file is appended."""
    starts, data = [0], find_wav_data(file)
    while data is not None:
        end = data.start + data.length
        # Some programs omit the byte that pads an odd number of samples.
        found = (
            _behind_chunks(file, position, size) for position in sorted({end + data.length % 2, end}, reverse=True)
        )
        appended = next((position for position in found if position is not None), None)
        if appended is None:
            rate = int.from_bytes(data.format_chunk[8:12], "little")
            if size - end < _UNNOTICED * rate:
                break
            overrun = (data.length / rate, (size - end) / rate) if rate and data.length else None
            return Layout(_parts(starts, size), length_known=False, overrun=overrun)
        if appended == size:
            break
        starts.append(appended)
        data = find_wav_data(file, appended)
    return Layout(_parts(starts, size))


def _behind_chunks(file: BinaryIO, position: int, size: int) -> int | None:
    """Returns the start of the next WAV file, or the end of the file; None if the bytes until then are no chunks."""
    while position + 8 <= size:
        file.seek(position)
        head = file.read(_TAG_HEAD)
        tag = _tag_length(head)
        if tag is not None:
            position = min(position + tag, size)  # What is left of a tag that was cut off is no sound either.
            continue
        kind, length = head[:4], int.from_bytes(head[4:8], "little")
        if kind == b"RIFF":
            return position
        position += 8 + length + length % 2
        if not _is_chunk_name(kind) or position > size + 1:
            return None
    return size


def _tag_length(head: bytes) -> int | None:
    """Returns the number of bytes of the ID3 or APE tag that begins with `head`; None if none does."""
    if head.startswith(b"ID3"):
        return 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
    if head.startswith(b"APETAGEX"):
        return _TAG_HEAD + int.from_bytes(head[12:16], "little")
    return _ID3V1 if head.startswith(b"TAG") else None


def _parts(starts: list[int], size: int) -> tuple[tuple[int, int], ...]:
    return tuple(zip(starts, [*starts[1:], size]))


_FINDERS = {
    b"OggS": _ogg_layout, b"fLaC": _flac_layout, b"RIFF": _wav_layout, b"caff": _caf_layout, b"ftyp": _mp4_layout,
}  # fmt: skip
"""Functions that find the layout of a file, by its first bytes."""
