"""Lookup of the files that a table names, in a folder that may have another structure than where it was written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile

from psla_jax.data.prepare.names import nfc
from psla_jax.data.prepare.walk import walk

_Path = tuple[str, ...]
"""Components of a path in Unicode's composed form; the first one of an absolute path is empty, or a drive."""


def find_files(names: Sequence[str], base: str, *, progress: bool) -> list[list[str]]:
    r"""Returns the files that each name can stand for: none if it is missing, several if it is ambiguous.

    A name without folders is that of a file in `base` or at any depth below it. A path is relative to `base` or to a
    folder below it; all of its folders must match. If no path at all can be found, the recordings have moved, and the
    fewest leading folders that all paths have in common are left out such that any path can be found.

    A name may lack its extension, ``\`` separates folders, and the Unicode form does not matter.
    """
    files = [[file] if (file := _existing(name, base)) else [] for name in names]
    if all(files):
        return files
    index = _Index(base, progress)
    paths = [_components(name) for name in names]
    moved = [i for i, path in enumerate(paths) if len(path) > 1 and not (files[i] and os.path.isabs(names[i]))]
    files = [found or index.below(path) for found, path in zip(files, paths)]
    for dropped in range(1, _num_shared([paths[i][:-1] for i in moved]) + 1):
        if any(files[i] for i in moved):
            break
        for i in moved:
            tail = paths[i][dropped:]
            files[i] = index.below(tail) if len(tail) > 1 else index.directly(tail[0])
    return files


def _existing(name: str, base: str) -> str:
    paths = (os.path.normpath(os.path.join(base, spelling)) for spelling in (name, name.replace("\\", "/")))
    return next(filter(os.path.isfile, paths), "")


def _num_shared(paths: Sequence[_Path]) -> int:
    """Returns the number of leading components that all paths have in common."""
    return sum(1 for _ in takewhile(lambda components: len(set(components)) == 1, zip(*paths)))


def _components(path: str) -> _Path:
    return tuple(os.path.normpath(nfc(path).replace("\\", "/")).split(os.sep))


class _Index:
    """The audio files below a folder by name, with and without extension."""

    def __init__(self, base: str, progress: bool) -> None:
        self._base = base
        self._files: dict[str, list[str]] = {}
        for listing in walk([base], progress=progress):
            for name in listing.audio:
                file = os.path.join(listing.folder, name)
                self._files.setdefault(nfc(name), []).append(file)
                self._files.setdefault(nfc(name[: name.rfind(".") + 1]), []).append(file)

    def below(self, path: _Path) -> list[str]:
        """Returns the files whose path ends with `path`."""
        *folders, name = path
        named = self._named(name)
        return [f for f in named if not folders or [*_components(os.path.dirname(f))][-len(folders) :] == folders]

    def directly(self, name: str) -> list[str]:
        """Returns the files directly in the base folder."""
        return [file for file in self._named(name) if os.path.dirname(file) == self._base]

    def _named(self, name: str) -> list[str]:
        return self._files.get(name) or self._files.get(f"{name}.", [])
