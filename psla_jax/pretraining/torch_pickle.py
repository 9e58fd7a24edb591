"""Weight files of PyTorch read without PyTorch, and without executing code from them.

A ``.pth`` file is a pickle that refers to raw arrays: since PyTorch 1.6 in a zip archive, before that one after the
other in one file. The pickle may name tensors, storages, parameters and ordered dictionaries; whatever else it names
ends the reading before anything is called. No object that it can reach has attributes that it could set, except its own
dictionaries.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
"""Types of values by the name of the storage class."""
OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_tensor_v3": "a tensor of a rare type",
}
MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a file of PyTorch before 1.6."""
MAX_PICKLE = 1 << 26
"""Largest size of the pickle in bytes; it holds names and shapes only."""
MAX_COPIES = 2
"""Largest total size of the arrays, as a multiple of the file: tensors may share values."""


class DamagedError(Exception):
    """A file that is truncated, or whose parts contradict each other."""


class ForeignObjectError(Exception):
    """A pickle that names something besides weights; the message is its name."""


class NotDense(NamedTuple):
    """A tensor that is no plain array, and what it is."""

    kind: str


class _StorageType(NamedTuple):
    """The type of the values of a storage."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """Reference to raw values: their type, the key of their storage, and their number."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, in units of its values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Constructor:
    """The function that a name in the pickle stands for."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def read(path: Path) -> Any:
    """Returns the content of a file, with tensors as arrays or :class:`NotDense`.

    Raises:
        DamagedError: the file is truncated or contradicts itself.
        ForeignObjectError: it names something besides weights.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_archive(file)
            file.seek(0)
            return _read_sequence(file)
    except (DamagedError, ForeignObjectError, OSError):
        raise
    except Exception as error:  # A hostile pickle raises exceptions of any kind.
        raise DamagedError(str(error)) from error


def _read_archive(file: BinaryIO) -> Any:
    """Reads the format of PyTorch 1.6 and later: a zip archive without compression."""
    with zipfile.ZipFile(file) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        compressed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if "data.pkl" not in members or compressed:
            raise DamagedError("it is another zip archive")
        if archive.getinfo(members["data.pkl"]).file_size > MAX_PICKLE:
            raise DamagedError("its pickle is too large")
        big = "byteorder" in members and archive.read(members["byteorder"]) == b"big"

        @functools.cache
        def values(storage: _Storage) -> np.ndarray:
            data = archive.read(members[f"data/{storage.key}"])
            return np.frombuffer(data, storage.dtype.newbyteorder(">" if big else "<"))

        content = _Unpickler(io.BytesIO(archive.read(members["data.pkl"]))).load()
        return _Resolver(values, os.fstat(file.fileno()).st_size).resolved(content)


def _read_sequence(file: BinaryIO) -> Any:
    """Reads the format before PyTorch 1.6: pickles one after the other, then the storages."""
    magic, _, system = (_Unpickler(file).load() for _ in range(3))
    if magic != MAGIC:
        raise DamagedError("it is another pickle")
    unpickler = _Unpickler(file)
    content, keys = unpickler.load(), _Unpickler(file).load()
    order: Literal["<", ">"] = "<" if dict(system).get("little_endian", True) else ">"
    arrays: dict[str, np.ndarray] = {}
    for key in keys:
        (size,) = np.frombuffer(file.read(8), f"{order}i8").tolist()
        storage = unpickler.storages[key]
        if size != storage.size:
            raise DamagedError("the sizes of its arrays contradict each other")
        arrays[key] = np.frombuffer(file.read(size * storage.dtype.itemsize), storage.dtype.newbyteorder(order))
    return _Resolver(lambda storage: arrays[storage.key], os.fstat(file.fileno()).st_size).resolved(content)


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries, lists and numbers, and references to tensors; refuses every other name."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise ForeignObjectError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(dtype, _StorageType) or (len(pid) > 5 and pid[5] is not None):
            raise DamagedError("it refers to something other than a storage")
        return self.storages.setdefault(str(key), _Storage(dtype.dtype, str(key), int(size)))


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _not_dense(kind: str) -> _Constructor:
    return _Constructor(lambda *_: NotDense(kind))


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Constructor(OrderedDict),
    ("torch", "Size"): _Constructor(tuple),
    ("torch._utils", "_rebuild_tensor"): _Constructor(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Constructor(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Constructor(lambda data, *_: data),
    **{("torch._utils", name): _not_dense(kind) for name, kind in OTHER_TENSORS.items()},
    ("torch.serialization", "_get_layout"): _Constructor(lambda name: None),
    **{("torch", name): _StorageType(dtype) for name, dtype in DTYPES.items()},
}
"""Everything that a pickle may name."""


class _Resolver:
    """Replaces tensors by arrays in nested dictionaries and lists; what is referred to several times is one object."""

    def __init__(self, values: Callable[[_Storage], np.ndarray], file_size: int) -> None:
        self._values, self._bytes_left = values, MAX_COPIES * file_size
        self._done: dict[int, Any] = {}

    def resolved(self, content: Any) -> Any:
        """Returns `content` with arrays."""
        is_reference = isinstance(content, NotDense | _Storage | _StorageType)  # which are tuples
        if is_reference or not isinstance(content, _Tensor | dict | list | tuple):
            return content
        if id(content) not in self._done:
            self._done[id(content)] = None  # for a list that contains itself
            self._done[id(content)] = self._replaced(content)
        return self._done[id(content)]

    def _replaced(self, content: Any) -> Any:
        if isinstance(content, _Tensor):
            return self._array(content)
        if isinstance(content, dict):
            # The method of the class: the pickle may have set attributes of this dictionary.
            return {key: self.resolved(value) for key, value in dict.items(content)}
        return [self.resolved(value) for value in content]

    def _array(self, tensor: _Tensor) -> np.ndarray:
        """Returns a copy of a tensor in the byte order of this machine. Raises DamagedError if values are missing."""
        values, (_, offset, shape, strides) = self._values(tensor.storage), tensor
        size, itemsize = math.prod(shape), values.dtype.itemsize
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        fits = len(shape) == len(strides) and min((offset, *shape, *strides)) >= 0 and (not size or last < len(values))
        self._bytes_left -= size * itemsize
        if len(values) != tensor.storage.size or not fits or self._bytes_left < 0:
            raise DamagedError("the shape of a tensor contradicts the number of its values")
        steps = [itemsize * stride for stride in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).astype(tensor.storage.dtype)
