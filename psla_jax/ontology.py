"""The classes of a model (:class:`Vocabulary`) and how sound classes contain each other (:class:`Ontology`)."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from psla_jax.files import written_aside
from psla_jax.terminal import printable

_HEADER = ["index", "mid", "display_name"]
RELEASED = ("audioset", "fsd50k")
"""Class lists that come with the package, by the name that stands for their file (both CC BY 4.0)."""


class VocabularyError(ValueError):
    """A list of classes that cannot be used, or a class that is not in it."""


class OntologyError(ValueError):
    """An ontology that cannot be used, or a class that is not in it."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes in the order of a model's outputs; classes are known by their mid, whatever their order elsewhere.

    Raises:
        VocabularyError: no class, a class without mid, a mid given twice, one with a comma in it (datafiles join mids
            by commas), or a name with control characters.
    """

    mids: tuple[str, ...]
    """Machine identifiers, as ``/m/09x0r``."""
    names: tuple[str, ...]
    """Names for people, as ``Speech``."""

    def __post_init__(self) -> None:
        if not self.mids:
            raise VocabularyError("the vocabulary has no class: give at least one.")
        if len(self.mids) != len(self.names):
            raise VocabularyError(
                f"the vocabulary has {len(self.mids)} mids and {len(self.names)} names: give one each."
            )
        seen: set[str] = set()
        for index, mid in enumerate(self.mids):
            if not mid or "," in mid:
                raise VocabularyError(f"class {index} has the mid {mid!r}: use one that is not empty and has no comma.")
            if mid in seen:
                raise VocabularyError(f"class {index} has the mid {mid!r}, as one before it: keep one of them.")
            seen.add(mid)
            for text in (mid, self.names[index]):
                if printable(text) != text or "\n" in text:
                    raise VocabularyError(f"class {index} is called {text!r}: leave control characters out.")

    def __len__(self) -> int:
        return len(self.mids)

    def __contains__(self, mid: object) -> bool:
        return mid in self.indices

    @cached_property
    def indices(self) -> Mapping[str, int]:
        """The index of every mid."""
        return {mid: index for index, mid in enumerate(self.mids)}

    def index(self, mid: str) -> int:
        """The position of a class among the model's outputs.

        Raises:
            VocabularyError: there is no such class.
        """
        try:
            return self.indices[mid]
        except KeyError:
            raise VocabularyError(
                f"{mid!r} is not among the {len(self)} classes of the vocabulary: use the label file it belongs to."
            ) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a label CSV: the header ``index,mid,display_name``, then one line per class, numbered from 0 in order.

        ``audioset`` and ``fsd50k`` mean the class lists of these data sets, which come with the package.

        Raises:
            VocabularyError: the file is missing, empty or not such a file.
        """
        where = _released(os.fspath(path))
        try:
            with open(where, encoding="utf-8-sig", newline="") as file:
                rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))]
        except OSError as error:
            raise VocabularyError(
                f"the label file {where} cannot be read ({error.strerror}): check the path."
            ) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise VocabularyError(
                f"the label file {where} is not a CSV file ({error}): save it as UTF-8 text."
            ) from error
        if not rows:
            raise VocabularyError(f"the label file {where} is empty: it needs the header {','.join(_HEADER)}.")
        if [cell.strip() for cell in rows[0][1]] != _HEADER:
            raise VocabularyError(
                f"the label file {where} starts with {','.join(rows[0][1])!r}: it needs the header {','.join(_HEADER)}."
            )
        classes = [_class_of(where, number, row, index) for index, (number, row) in enumerate(rows[1:])]
        try:
            return cls(tuple(mid for mid, _ in classes), tuple(name for _, name in classes))
        except VocabularyError as error:
            raise VocabularyError(f"in the label file {where}, {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the label CSV that :meth:`read` reads; a file that is already there is replaced as a whole."""
        with written_aside(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_HEADER)
            writer.writerows((index, mid, name) for index, (mid, name) in enumerate(zip(self.mids, self.names)))

    def to_json(self) -> list[list[str]]:
        """``[[mid, name], ...]`` in class order, for :func:`json.dump`."""
        return [[mid, name] for mid, name in zip(self.mids, self.names)]

    @classmethod
    def from_json(cls, value: Any) -> Vocabulary:
        """The vocabulary that :meth:`to_json` gave.

        Raises:
            VocabularyError: the value has another form.
        """
        if not isinstance(value, list):
            raise VocabularyError(f"a vocabulary is a list of [mid, name], not {value!r:.80}.")
        for pair in value:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(item, str) for item in pair)):
                raise VocabularyError(f"a vocabulary is a list of [mid, name], and one item is {pair!r:.80}.")
        return cls(tuple(pair[0] for pair in value), tuple(pair[1] for pair in value))


def _released(path: str) -> str:
    """The file that a path means: that of a released class list, where one is named and no such file is there."""
    if path in RELEASED and not os.path.exists(path):
        return os.path.join(os.path.dirname(__file__), "vocabularies", f"{path}.csv")
    return path


def _class_of(path: str, number: int, row: list[str], index: int) -> tuple[str, str]:
    """The mid and the name on one line of a label CSV."""
    if len(row) != len(_HEADER):
        raise VocabularyError(
            f"line {number} of the label file {path} has {len(row)} fields, not 3: put names with a comma in quotes."
        )
    if row[0].strip() != str(index):
        raise VocabularyError(
            f"line {number} of the label file {path} has the index {row[0]!r} where {index} belongs: "
            "number the classes 0, 1, 2, ... in order."
        )
    return row[1].strip(), row[2].strip()


@dataclass(frozen=True)
class SoundClass:
    """One class of an ontology."""

    mid: str
    name: str
    children: tuple[str, ...]
    """Mids of the direct children, in the order of the file."""
    restrictions: tuple[str, ...]
    """``abstract`` (not meant as a label) and ``blacklist`` (not used as one). Label enhancement (PSLA, section III-D)
    gives classes whose restrictions are exactly ``("abstract",)`` no entry, so that their labels add nothing."""


@dataclass(frozen=True)
class Ontology:
    """Sound classes by mid, and their order from general to special: a class may have several parents.

    Raises:
        OntologyError: a child is not in the ontology, or a class is its own ancestor.
    """

    classes: Mapping[str, SoundClass]

    def __post_init__(self) -> None:
        for parent in self.classes.values():
            for child in parent.children:
                if child not in self.classes:
                    raise OntologyError(f"{parent.mid!r} has the child {child!r}, which the ontology lacks: add it.")
        for mid in self.classes:
            if mid in self.ancestors(mid):
                raise OntologyError(
                    f"{mid!r} is its own ancestor in the ontology: remove one of the child_ids between."
                )

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, mid: object) -> bool:
        return mid in self.classes

    @cached_property
    def _parents(self) -> Mapping[str, tuple[str, ...]]:
        parents: dict[str, tuple[str, ...]] = {mid: () for mid in self.classes}
        for parent in self.classes.values():
            for child in parent.children:
                parents[child] += (parent.mid,)
        return parents

    def children(self, mid: str) -> tuple[str, ...]:
        """Mids of the direct children, in the order of the file.

        Raises:
            OntologyError: there is no such class.
        """
        return self._known(mid).children

    def ancestors(self, mid: str) -> tuple[str, ...]:
        """Mids of the parents, their parents and so on; the nearest first, each once.

        Raises:
            OntologyError: there is no such class.
        """
        found: dict[str, None] = {}
        frontier = self._parents[self._known(mid).mid]
        while frontier:
            found.update(dict.fromkeys(frontier))
            frontier = tuple(up for parent in frontier for up in self._parents[parent] if up not in found)
        return tuple(found)

    def restrictions(self, mid: str) -> tuple[str, ...]:
        """The restrictions of a class, see :class:`SoundClass`.

        Raises:
            OntologyError: there is no such class.
        """
        return self._known(mid).restrictions

    def _known(self, mid: str) -> SoundClass:
        if mid not in self.classes:
            raise OntologyError(f"{mid!r} is not among the {len(self)} classes of the ontology: use the AudioSet mids.")
        return self.classes[mid]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ontology:
        """Reads AudioSet's ``ontology.json``: a list of objects with id, name, child_ids and restrictions.

        Raises:
            OntologyError: the file is missing or not such a file.
        """
        where = os.fspath(path)
        try:
            with open(where, encoding="utf-8-sig") as file:
                entries = json.load(file)
            classes = [
                SoundClass(entry["id"], entry["name"], tuple(entry["child_ids"]), tuple(entry.get("restrictions", ())))
                for entry in entries
            ]
        except OSError as error:
            raise OntologyError(f"the ontology {where} cannot be read ({error.strerror}): check the path.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = "it is no text" if isinstance(error, UnicodeDecodeError) else repr(error)
            raise OntologyError(f"{where} is not AudioSet's ontology.json ({reason}): download it again.") from error
        return cls({entry.mid: entry for entry in classes})
