"""The JSON datafile ``{"data": [{"wav": path, "labels": "mid,mid"}, ...]}``, held as arrays.

Before ``data`` it may say ``"classes": "exclusive"``: every clip has exactly one of the classes.

As a list of dicts, the two million clips of AudioSet would fill a gigabyte in every loader process. Here they are four
arrays, about 0.2 GB, that processes on one machine share through :meth:`Datafile.share`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO

import ijson
import numpy as np

from psla_jax import shards
from psla_jax.files import written_aside
from psla_jax.ontology import Vocabulary

_ARRAYS = ("paths", "path_offsets", "label_indices", "label_offsets")
_BUFFER = 1 << 20
_BOM = b"\xef\xbb\xbf"
# Not every JSON parser refuses a lone surrogate, which is how Python writes a file name that is not UTF-8.
_ERRORS = "surrogatepass"


class DatafileError(ValueError):
    """A datafile that cannot be used; the message names the file, the clip and the remedy."""


@dataclass(frozen=True, eq=False)
class Datafile:
    """Clips with their labels; clip ``i`` is the ``i``-th record of the file."""

    paths: np.ndarray
    """uint8: the UTF-8 bytes of all paths, one after the other."""
    path_offsets: np.ndarray
    """int64 ``(clips + 1,)``: where each path starts; the last is the end."""
    label_indices: np.ndarray
    """int32: the class indices of all clips, one clip after the other, each class once a clip."""
    label_offsets: np.ndarray
    """int64 ``(clips + 1,)``: where each clip's labels start; the last is the end."""
    num_classes: int
    """Classes of the vocabulary it was read with."""
    sha256: str
    """Hash of the file's content."""
    source: str
    """Absolute path of the file."""
    exclusive: bool = False
    """Whether the file says that its classes exclude each other, so that every clip has exactly one."""
    mapped: str = ""
    """The directory its arrays are mapped from; empty when they are in memory."""

    def __len__(self) -> int:
        return len(self.path_offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        if self.mapped:
            return _map, (self.mapped,)
        return Datafile, tuple(getattr(self, field.name) for field in fields(self))

    def wav(self, i: int) -> str:
        """The path of a clip's audio file, or its address in a shard (:mod:`psla_jax.shards`).

        A relative one is resolved against the directory of the datafile.

        Raises:
            IndexError: there is no such clip.
        """
        return os.path.join(os.path.dirname(self.source), self.path(i))

    def path(self, i: int) -> str:
        """The path of a clip's audio file as it stands in the datafile.

        Raises:
            IndexError: there is no such clip.
        """
        return self._row(self.paths, self.path_offsets, i).tobytes().decode("utf-8", _ERRORS)

    def clip_id(self, i: int) -> str:
        """What a clip is known by, in scores for example: the path of its audio file, also after it was packed.

        Raises:
            IndexError: there is no such clip.
        """
        return shards.clip_id(self.wav(i))

    def labels(self, i: int) -> np.ndarray:
        """The class indices of a clip, int32, in the order of the file.

        Raises:
            IndexError: there is no such clip.
        """
        return self._row(self.label_indices, self.label_offsets, i)

    def multi_hot(self, i: int) -> np.ndarray:
        """The labels of a clip as float32 ``(classes,)``: 1 where it has the class, else 0.

        Raises:
            IndexError: there is no such clip.
        """
        hot = np.zeros(self.num_classes, np.float32)
        hot[self.labels(i)] = 1
        return hot

    def class_counts(self) -> np.ndarray:
        """How many clips have each class: int64 ``(classes,)``."""
        return np.bincount(self.label_indices, minlength=self.num_classes).astype(np.int64)

    def clip_weights(self) -> np.ndarray:
        """See :func:`clip_weights`."""
        return clip_weights(self)

    def _row(self, values: np.ndarray, offsets: np.ndarray, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {self.source} was asked for, which has the clips 0 to {len(self) - 1}.")
        return values[offsets[i] : offsets[i + 1]]

    @classmethod
    def read(cls, path: str | os.PathLike[str], vocabulary: Vocabulary) -> Datafile:
        """Reads a datafile without ever holding more than a block of its text.

        A clip may have no label (``""``); a label that a clip has twice counts once.

        Raises:
            DatafileError: the file is missing, empty or not such a file, has no clip, or has one without wav or labels,
                or with a label that the vocabulary lacks.
        """
        return _open(path, vocabulary.indices)

    def share(self, directory: str | os.PathLike[str]) -> Datafile:
        """The same datafile with its arrays mapped from disk: processes that open it share one copy in memory.

        The arrays are in a subdirectory named by their content, which is written if it is not there; so one directory
        serves any number of datafiles and processes. Pickled, the result is only the name of that subdirectory.

        Raises:
            OSError: the directory cannot be written.
        """
        key = hashlib.sha256(f"{self.sha256} {self.num_classes} {self.source}".encode("utf-8", _ERRORS))
        key.update(self.label_indices.tobytes())
        final = os.path.join(os.path.abspath(directory), key.hexdigest()[:16])
        if not os.path.isdir(final):
            self._save(final)
        return _map(final)

    def _save(self, final: str) -> None:
        aside = f"{final}.{uuid.uuid4().hex}.part"
        os.makedirs(aside)
        try:
            for name in _ARRAYS:
                np.save(os.path.join(aside, f"{name}.npy"), getattr(self, name))
            meta = {name: getattr(self, name) for name in ("num_classes", "sha256", "source", "exclusive")}
            with open(os.path.join(aside, "meta.json"), "w", encoding="utf-8") as file:
                json.dump(meta, file)
            os.rename(aside, final)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            # Another process may have been quicker to write the same arrays.
            if not (isinstance(error, OSError) and os.path.isdir(final)):
                raise


def _map(directory: str) -> Datafile:
    """The datafile whose arrays :meth:`Datafile.share` wrote."""
    with open(os.path.join(directory, "meta.json"), encoding="utf-8") as file:
        meta = json.load(file)
    files = {name: np.load(os.path.join(directory, f"{name}.npy"), mmap_mode="r") for name in _ARRAYS}
    # The same memory as a plain array: slicing a memmap costs several times as much.
    arrays = {name: file.view(np.ndarray) for name, file in files.items()}
    return Datafile(**arrays, **meta, mapped=directory)


class _HashedFile:
    """A binary file that hashes what is read from it and leaves out a byte order mark."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        first = self.size == 0
        self._hash.update(block)
        self.size += len(block)
        return block.removeprefix(_BOM) if first else block

    def digest(self) -> str:
        return self._hash.hexdigest()


def _says_exclusive(file: BinaryIO) -> bool:
    """Whether ``"classes": "exclusive"`` stands before the clips; nothing after them is looked at."""
    try:
        for prefix, _, value in ijson.parse(_HashedFile(file)):
            if prefix == "classes":
                return value == "exclusive"
            if prefix == "data":
                return False
    except (ijson.JSONError, UnicodeDecodeError):
        pass  # Reading the clips will say it, with the reason.
    return False


class _Growing(dict[str, int]):
    """Indices of mids; one that is asked for and not there gets the next."""

    def __missing__(self, mid: str) -> int:
        self[mid] = len(self)
        return self[mid]


def read_any(path: str | os.PathLike[str], mids: Sequence[str] = ()) -> tuple[Datafile, tuple[str, ...]]:
    """Reads a datafile whatever its labels are: a class that is not among ``mids`` is put behind them.

    Returns:
        The datafile, and all classes in the order of its indices.

    Raises:
        DatafileError: as :meth:`Datafile.read`, unknown labels aside.
    """
    indices = _Growing((mid, index) for index, mid in enumerate(mids))
    data = _open(path, indices)
    return data, tuple(indices)


def _open(path: str | os.PathLike[str], indices: Mapping[str, int]) -> Datafile:
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            exclusive = _says_exclusive(file)
            file.seek(0)
            return replace(_parse(_HashedFile(file), where, indices), exclusive=exclusive)
    except OSError as error:
        raise DatafileError(f"the datafile {where} cannot be read ({error.strerror}): check the path.") from error


def _parse(file: _HashedFile, where: str, indices: Mapping[str, int]) -> Datafile:
    paths, path_offsets = bytearray(), array("q", [0])
    labels, label_offsets = array("i"), array("q", [0])
    for number, record in enumerate(_records(file, where)):
        wav, mids = _fields_of(record, number, where)
        paths += wav.encode("utf-8", _ERRORS)
        path_offsets.append(len(paths))
        try:
            labels.extend(_indices_of(mids, indices))
        except KeyError as error:
            raise DatafileError(
                f"clip {number} ({wav}) of the datafile {where} has the label {error.args[0]!r}, which is not among "
                f"the {len(indices)} classes: use the label file this datafile was made with, or remove the label."
            ) from None
        label_offsets.append(len(labels))
    if len(path_offsets) == 1:
        raise DatafileError(
            f'the datafile {where} has no clip: it must be {{"data": [{{"wav": ..., "labels": ...}}, ...]}}.'
        )
    return Datafile(
        _frozen(paths, np.uint8),
        _frozen(path_offsets, np.int64),
        _frozen(labels, np.int32),
        _frozen(label_offsets, np.int64),
        len(indices),
        file.digest(),
        os.path.abspath(where),
    )


def records(path: str | os.PathLike[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The clips of a datafile one at a time, whatever its classes: path and mids as they stand there, each mid once.

    Raises:
        DatafileError: the file is missing, empty or not such a file, or a clip has no wav or labels.
    """
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            for number, record in enumerate(_records(_HashedFile(file), where)):
                wav, mids = _fields_of(record, number, where)
                yield wav, tuple(dict.fromkeys(sys.intern(mid) for mid in map(str.strip, mids.split(",")) if mid))
    except OSError as error:
        raise DatafileError(f"the datafile {where} cannot be read ({error.strerror}): check the path.") from error


def _records(file: _HashedFile, where: str) -> Iterator[Any]:
    """The items of the list ``data``, parsed as they come."""
    try:
        yield from ijson.items(file, "data.item", buf_size=_BUFFER)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        if file.size == 0:
            raise DatafileError(f"the datafile {where} is empty: write it again.") from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise DatafileError(f"the datafile {where} is not JSON in UTF-8 ({reason}): write it again.") from error


def _fields_of(record: Any, number: int, where: str) -> tuple[str, str]:
    """The path and the comma-joined mids of a record."""
    if not isinstance(record, dict):
        raise DatafileError(
            f'clip {number} of the datafile {where} is {record!r:.80}: it must be {{"wav": ..., "labels": ...}}.'
        )
    for key in ("wav", "labels"):
        if not isinstance(record.get(key), str) or (key == "wav" and not record[key]):
            kind = "a path" if key == "wav" else 'mids joined by commas, or ""'
            has = f"{record[key]!r:.80} as" if key in record else "no"
            raise DatafileError(f"clip {number} of the datafile {where} has {has} {key}: give it {kind}.")
    return record["wav"], record["labels"]


def _indices_of(mids: str, indices: Mapping[str, int]) -> Iterable[int]:
    found = [indices[mid] for mid in map(str.strip, mids.split(",")) if mid]
    return found if len(found) < 2 else dict.fromkeys(found)


def _frozen(buffer: bytearray | array[int], dtype: type) -> np.ndarray:
    values: np.ndarray = np.frombuffer(buffer, dtype)
    values.flags.writeable = False
    return values


def clip_weights(datafile: Datafile) -> np.ndarray:
    """The weight of every clip for balanced sampling (PSLA, section III-C): float64 ``(clips,)``.

    A clip's weight is the sum, over its labels, of ``1000 / (clips with that label + 0.01)``; 0 for a clip without any.
    """
    of_class = 1000 / (datafile.class_counts() + 0.01)
    clips = np.repeat(np.arange(len(datafile)), np.diff(datafile.label_offsets))
    sums = np.bincount(clips, weights=of_class[datafile.label_indices], minlength=len(datafile))
    return sums.astype(np.float64)  # without any label at all, bincount gives integers


def write(
    path: str | os.PathLike[str], records: Iterable[tuple[str, Sequence[str]]], *, exclusive: bool = False
) -> int:
    """Writes ``(wav, mids)`` pairs as a datafile, one at a time; it replaces a file of that name once it is whole.

    Args:
        path: where to.
        records: the clips.
        exclusive: whether the file is to say that its classes exclude each other (``"classes": "exclusive"``), which
            makes cross-entropy the loss of ``optimizer.loss auto``.

    Returns:
        The number of clips.

    Raises:
        DatafileError: a clip has no path, or a mid that is empty or has a comma in it.
    """
    count = 0
    quoted = json.JSONEncoder().encode  # json.dumps makes an encoder for every call
    with written_aside(path) as file:
        file.write('{\n "classes": "exclusive",\n "data": [' if exclusive else '{\n "data": [')
        for wav, mids in records:
            labels = ",".join(mids)
            if not _is_text(wav) or "" in mids or labels.count(",") != max(len(mids) - 1, 0):
                raise DatafileError(
                    f"clip {count} is {wav!r} with the labels {list(mids)!r}: "
                    "give a path in UTF-8, and mids without commas."
                )
            file.write(f'{"," if count else ""}\n  {{\n   "wav": {quoted(wav)},\n   "labels": {quoted(labels)}\n  }}')
            count += 1
        file.write(("\n " if count else "") + "]\n}")
    return count


def _is_text(path: str) -> bool:
    """Whether a path is one that JSON in UTF-8 can hold; a name in another encoding is not."""
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


def weight_path(json_path: str | os.PathLike[str]) -> str:
    """Where the weights of a datafile are: ``<stem>_weight.csv`` beside it."""
    return f"{os.path.splitext(os.fspath(json_path))[0]}_weight.csv"


def write_weights(datafile_or_weights: Datafile | np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes clip weights, or those of a datafile, one to a line, as the reference does; ``numpy.loadtxt`` reads it."""
    given = datafile_or_weights
    values = given.clip_weights() if isinstance(given, Datafile) else given
    with written_aside(path) as file:
        file.writelines(f"{value:.18e}\n" for value in values.tolist())  # as numpy.savetxt, in a third of the time
