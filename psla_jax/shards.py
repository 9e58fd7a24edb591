"""Many recordings in one file: shards in the ArrayRecord format, and the addresses of the clips in them.

Where a datafile has the path of an audio file it may have an address instead: ``SHARD.arrayrecord#17:/data/street.wav``
is record 17 of that shard, made from ``/data/street.wav``. That path stays the clip's id, whatever becomes of the file.

A record is the length of the id in four bytes (little-endian), the id in UTF-8, and a whole audio file.
"""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SUFFIX = ".arrayrecord"
_ADDRESS = re.compile(rf"(.*?{re.escape(SUFFIX)})#(\d+):(.+)", re.DOTALL)
_LENGTH_BYTES = 4
# Names that are not UTF-8 are held as lone surrogates, as in datafiles.
_ERRORS = "surrogatepass"
_OPEN = 256
"""Shards that a process keeps open."""
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 1 << 15}
_WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record at a time is read, and what is in it is either compressed already or is to be read fast."""


class ShardError(RuntimeError):
    """A shard that cannot be read or written; goes on where an address ends, or is a sentence that names the shard."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a packed clip is."""

    shard: str
    """Path of the shard."""
    record: int
    """Which of its records, from 0."""
    clip_id: str
    """Path of the file that the clip was before it was packed."""

    def __str__(self) -> str:
        return f"{self.shard}#{self.record}:{self.clip_id}"


def parse(path: str) -> Address | None:
    """The address that stands where a path could; None if it is the path of a file."""
    found = _ADDRESS.fullmatch(path) if SUFFIX in path else None
    return Address(found[1], int(found[2]), found[3]) if found else None


def clip_id(path: str) -> str:
    """What a clip is known by, packed or not: the path of its file as it was before packing."""
    address = parse(path)
    return path if address is None else address.clip_id


def file_of(path: str) -> str:
    """The file on the disk that holds a clip: its shard, or its own."""
    address = parse(path)
    return path if address is None else address.shard


def read(address: Address) -> memoryview:
    """The audio file in a record, which is not copied once more.

    Raises:
        ShardError: the shard is missing or damaged, or the record holds another clip.
    """
    try:
        found = os.stat(address.shard)
    except (OSError, ValueError):
        raise ShardError("is in a shard that is missing: correct the path, or pack the data set again.") from None
    # Keyed by the file's identity too: a shard that was packed again is opened again.
    reader = _reader(address.shard, found.st_ino, found.st_mtime_ns, found.st_size)
    count = reader.num_records()
    if address.record >= count:
        raise _damaged(f"it has {count} records")
    try:
        record: bytes = reader.read([address.record])[0]
    except (RuntimeError, IndexError) as error:
        raise _damaged(_reason(error)) from error
    return _unwrapped(record, address.clip_id)


def _damaged(reason: str) -> ShardError:
    return ShardError(
        f"is in a damaged shard ({reason}): copy the shard again, or pack the data set again with --force."
    )


def _reason(error: Exception) -> str:
    """The first part of what ArrayRecord says; the rest is where in the file."""
    return re.split(r"; | \(|\n", str(error))[0] or type(error).__name__


def _unwrapped(record: bytes, clip_id: str) -> memoryview:
    start = _LENGTH_BYTES + int.from_bytes(record[:_LENGTH_BYTES], "little")
    if record[_LENGTH_BYTES:start] != clip_id.encode("utf-8", _ERRORS):
        raise ShardError("is another clip in its shard: use the datafile that was written with the shards.")
    return memoryview(record)[start:]


@functools.lru_cache(maxsize=_OPEN)
def _reader(shard: str, *identity: int) -> Any:
    reader = _array_record().ArrayRecordReader(shard, **_READER_OPTIONS)
    if reader.ok():
        return reader
    try:
        reader.close()
    except RuntimeError as error:
        raise _damaged(_reason(error)) from error
    raise _damaged("it cannot be opened")


def _array_record() -> Any:
    # There is none for Windows, where all but packed data sets works.
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ShardError(f"needs the library array_record, which this system lacks ({error}).") from error
    return array_record_module


def write(path: str, clips: Iterable[tuple[str, bytes]]) -> int:
    """Writes a shard; it appears whole or not at all.

    Args:
        path: where to; a shard that is already there is replaced.
        clips: id and audio file of each.

    Returns:
        How many records there are.

    Raises:
        ShardError: it cannot be written.
    """
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.part")
    library, count = _array_record(), 0
    try:
        try:
            writer = library.ArrayRecordWriter(aside, _WRITER_OPTIONS)
            for clip, content in clips:
                named = clip.encode("utf-8", _ERRORS)
                writer.write(len(named).to_bytes(_LENGTH_BYTES, "little") + named + content)
                count += 1
            writer.close()
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # of the clips, not of the writer
                raise
            raise ShardError(
                f"{path} cannot be written ({_reason(error)}): free some space, or use another folder."
            ) from error
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
    return count
