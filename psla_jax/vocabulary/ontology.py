"""Hierarchy of sound classes: AudioSet's ontology."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from psla_jax.runtime.streams import regular_file


class OntologyError(ValueError):
    """An invalid ontology, or a class that it does not contain."""


@dataclass(frozen=True)
class SoundClass:
    """One class of an ontology."""

    mid: str
    name: str
    children: tuple[str, ...]
    """Mids of the direct children, in the order of the file."""
    restrictions: tuple[str, ...]
    """``abstract`` (not intended as a label) and ``blacklist`` (not used as a label). In label enhancement
    (PSLA, section III-D), labels whose restrictions are exactly ``("abstract",)`` add no other labels."""


@dataclass(frozen=True)
class Ontology:
    """Sound classes by mid, with their hierarchy from general to specific; a class may have several parents.

    Raises OntologyError if a child is not in the ontology, or a class is its own ancestor.
    """

    classes: Mapping[str, SoundClass]

    def __post_init__(self) -> None:
        for parent in self.classes.values():
            for child in parent.children:
                if child not in self.classes:
                    raise OntologyError(f"{parent.mid!r} has the child {child!r}, which the ontology lacks: add it.")
        for mid in self.classes:
            if mid in self.ancestors(mid):
                raise OntologyError(f"{mid!r} is its own ancestor in the ontology: remove a child_id of the cycle.")

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
        """Returns the mids of the direct children; raises OntologyError if the ontology does not contain the class."""
        return self._class(mid).children

    def ancestors(self, mid: str) -> tuple[str, ...]:
        """Returns the mids of all ancestors, nearest generation first, each once; errors as for :meth:`children`."""
        ancestors: dict[str, None] = {}
        generation = self._parents[self._class(mid).mid]
        while generation:
            ancestors.update(dict.fromkeys(generation))
            generation = tuple(up for parent in generation for up in self._parents[parent] if up not in ancestors)
        return tuple(ancestors)

    def restrictions(self, mid: str) -> tuple[str, ...]:
        """Returns the restrictions of a class, see :class:`SoundClass`; errors as for :meth:`children`."""
        return self._class(mid).restrictions

    def _class(self, mid: str) -> SoundClass:
        if mid not in self.classes:
            raise OntologyError(f"{mid!r} is not among the {len(self)} classes of the ontology: use the AudioSet mids.")
        return self.classes[mid]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ontology:
        """Reads AudioSet's ``ontology.json``: a list of objects with id, name, child_ids and restrictions.

        Raises OntologyError if the file is missing or has another format.
        """
        try:
            with regular_file(path) as name, open(name, encoding="utf-8-sig") as file:
                entries = json.load(file)
            classes = [
                SoundClass(entry["id"], entry["name"], tuple(entry["child_ids"]), tuple(entry.get("restrictions", ())))
                for entry in entries
            ]
        except OSError as error:
            raise OntologyError(f"the ontology {path} cannot be read ({error.strerror}): check the path.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = "it is not text" if isinstance(error, UnicodeDecodeError) else repr(error)
            raise OntologyError(f"{path} is not AudioSet's ontology.json ({reason}): download it again.") from error
        return cls({entry.mid: entry for entry in classes})
