"""Shards: ArrayRecord files that hold many audio files, and the addresses of the clips in them.

A datafile may contain an address instead of the path of an audio file: ``SHARD.arrayrecord#17:/data/street.wav`` is
record 17 of that shard, packed from ``/data/street.wav``. This path remains the clip's id; the file is not needed.

A record consists of the length of the id in four bytes (little-endian), the id in UTF-8, and a complete audio file.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psla_jax.runtime.files import atomic_path

SUFFIX = ".arrayrecord"
_ADDRESS = re.compile(rf"(.*?{re.escape(SUFFIX)})#(\d+):(.+)", re.DOTALL)
_LENGTH_BYTES = 4
# Names that are not UTF-8 contain lone surrogates, as in datafiles.
_ERRORS = "surrogatepass"
_OPEN_SHARDS = 256
"""Maximum number of shards that a process keeps open."""
# Records are read one at a time, and their audio is either compressed already or meant to be read fast.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 1 << 15}
_WRITER_OPTIONS = "group_size:1,uncompressed"


class ShardError(RuntimeError):
    """A shard that cannot be read or written; the message of :func:`read` continues a sentence after the address."""


@dataclass(frozen=True, slots=True)
class Address:
    """Location of a packed clip: path of the shard, index of the record from 0, and path of the original audio file."""

    shard: str
    record: int
    clip_id: str

    def __str__(self) -> str:
        return f"{self.shard}#{self.record}:{self.clip_id}"


def parse_address(path: str) -> Address | None:
    """Returns the address that a datafile contains in place of a path; None for the path of a file."""
    match = _ADDRESS.fullmatch(path) if SUFFIX in path else None
    return Address(match[1], int(match[2]), match[3]) if match else None


def clip_id(path: str) -> str:
    """Returns the id of a clip, packed or not: the path of its audio file before packing."""
    return address.clip_id if (address := parse_address(path)) else path


def storage_path(path: str) -> str:
    """Returns the file on disk that holds a clip: its shard, or the audio file itself."""
    return address.shard if (address := parse_address(path)) else path


def read(address: Address) -> memoryview:
    """Returns the audio file in a record, without copying it.

    Raises ShardError if the shard is missing or damaged, or the record holds another clip.
    """
    try:
        status = os.stat(address.shard)
    except (OSError, ValueError):
        raise ShardError("is in a shard that is missing: correct the path, or pack the data set again.") from None
    # Cached by the file's identity, so that a shard that has been packed again is reopened.
    reader = _reader(address.shard, status.st_ino, status.st_mtime_ns, status.st_size)
    count = reader.num_records()
    if address.record >= count:
        raise _damaged(f"it has {count} records")
    try:
        record: bytes = reader.read([address.record])[0]
    except (RuntimeError, IndexError) as error:
        raise _damaged(_reason(error)) from error
    start = _LENGTH_BYTES + int.from_bytes(record[:_LENGTH_BYTES], "little")
    if record[_LENGTH_BYTES:start] != address.clip_id.encode("utf-8", _ERRORS):
        raise ShardError("is another clip in its shard: use the datafile that was written with the shards.")
    return memoryview(record)[start:]


def _damaged(reason: str) -> ShardError:
    return ShardError(
        f"is in a damaged shard ({reason}): copy the shard again, or pack the data set again with --force."
    )


def _reason(error: Exception) -> str:
    """Returns ArrayRecord's message without the position in the file."""
    return re.split(r"; | \(|\n", str(error))[0] or type(error).__name__


@functools.lru_cache(maxsize=_OPEN_SHARDS)
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
    # Not available for Windows, where everything except packed data sets works.
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ShardError(f"needs the library array_record, which this system lacks ({error}).") from error
    return array_record_module


def write(path: str, clips: Iterable[tuple[str, bytes]]) -> int:
    """Writes ids and audio files to a shard, which replaces an existing one atomically; returns the number of records.

    Raises ShardError if it cannot be written.
    """
    library, count = _array_record(), 0
    with atomic_path(path) as temporary:
        try:
            writer = library.ArrayRecordWriter(temporary, _WRITER_OPTIONS)
            for clip, content in clips:
                encoded_id = clip.encode("utf-8", _ERRORS)
                writer.write(len(encoded_id).to_bytes(_LENGTH_BYTES, "little") + encoded_id + content)
                count += 1
            writer.close()
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # raised by `clips`, not by the writer
                raise
            raise ShardError(
                f"{path} cannot be written ({_reason(error)}): free some space, or use another folder."
            ) from error
    return count
