"""Arrays of scores in files that need not fit in memory: ``.npz``, ``.npy`` and HDF5, read in blocks of rows."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.runtime.files import NPZ_ERRORS

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
BLOCK_BYTES = 16 << 20
"""Size of the blocks that are read at a time."""


class ScoreArrayError(ValueError):
    """An array that a file does not have, or that cannot be read; the message names both."""


def read_blocks(file: Path, name: str) -> Iterator[np.ndarray]:
    """Yields an array of a file in blocks of rows; that of an ``.npy`` file has no name.

    Only a block is in memory, except for arrays of an ``.npz`` in column-major order.

    Raises:
        ScoreArrayError: there is no such array, or it cannot be read.
    """
    try:
        yield from _reader(file)(file, name)
    except (*NPZ_ERRORS, ImportError) as error:
        if isinstance(error, ScoreArrayError):
            raise
        raise ScoreArrayError(f"{file} cannot be read ({_reason(error, name)})") from error


def read_texts(file: Path, name: str) -> list[str]:
    """Returns an array of texts, also of bytes as HDF5 has them. Raises ScoreArrayError as :func:`read_blocks`."""
    texts = [text for block in read_blocks(file, name) for text in block.ravel().tolist()]
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts]


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, ImportError):
        return "HDF5 files need h5py: pip install psla_jax[hdf5]"
    return f"it has no array {name!r}" if isinstance(error, KeyError) else str(error).splitlines()[0].rstrip(".")


def _reader(file: Path) -> Any:
    if file.suffix.lower() in HDF5_SUFFIXES:
        return _read_hdf5
    return _read_npz if zipfile.is_zipfile(file) else _read_npy


def _rows_per_block(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return max(1, BLOCK_BYTES // max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize))


def _read_npy(file: Path, name: str) -> Iterator[np.ndarray]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    rows = _rows_per_block(array.shape, array.dtype)
    for start in range(0, len(array), rows):
        yield np.array(array[start : start + rows])


def _read_hdf5(file: Path, name: str) -> Iterator[np.ndarray]:
    import h5py

    with h5py.File(file, "r") as content:
        dataset = content[name]
        rows = _rows_per_block(dataset.shape, dataset.dtype)
        for start in range(0, len(dataset), rows):
            yield dataset[start : start + rows]


def _read_npz(file: Path, name: str) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = header(member)
        if column_major or dtype.hasobject or not shape:
            member.seek(0)
            yield np.lib.format.read_array(member, allow_pickle=False)
            return
        rows, size = _rows_per_block(shape, dtype), int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            block = member.read(count * size)
            yield np.frombuffer(block, dtype).reshape(count, *shape[1:])
