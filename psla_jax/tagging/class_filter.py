"""Selection of classes by name or mid; with an ontology, a class includes its descendants."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary


class ClassesError(ValueError):
    """Classes that cannot be selected; the message names them."""


def select_classes(
    vocabulary: Vocabulary, allow: Sequence[str], deny: Sequence[str], ontology: Ontology | None = None
) -> list[int] | None:
    """Returns the ascending indices of the selected classes, or None for all classes.

    Args:
        vocabulary: the model's classes.
        allow: names or mids; empty for all classes.
        deny: names or mids to exclude, also from `allow`.
        ontology: if given, a class stands for itself and all its descendants, and may be one that the model lacks;
            otherwise a class stands for itself only.

    Raises:
        ClassesError: a name is unknown, or no class is left.
    """
    if not allow and not deny:
        return None
    indices = {i for name in allow for i in _resolve(name, vocabulary, ontology)} or set(range(len(vocabulary)))
    indices -= {i for name in deny for i in _resolve(name, vocabulary, ontology)}
    if not indices:
        raise ClassesError("no class is left: allow more classes, or exclude fewer.")
    return sorted(indices)


def _resolve(name: str, vocabulary: Vocabulary, ontology: Ontology | None) -> set[int]:
    """Returns the indices of the model's classes that a name or mid stands for."""
    classes = [*zip(vocabulary.mids, vocabulary.names)]
    if ontology is not None:
        classes = [*((mid, entry.name) for mid, entry in ontology.classes.items()), *classes]
    mids = {_normalised(text): mid for mid, text in classes} | {mid: mid for mid, _ in classes}
    mid = mids.get(name, mids.get(_normalised(name)))
    if mid is None:
        similar = get_close_matches(_normalised(name), [key for key in mids if not key.startswith("/")], 1, 0.5)
        hint = f": did you mean {similar[0]!r}?" if similar else ": use the names or mids of the model's classes."
        raise ClassesError(f"there is no class {name!r}{hint}")
    indices = {
        index
        for index, own in enumerate(vocabulary.mids)
        if own == mid or (ontology is not None and own in ontology and mid in ontology.ancestors(own))
    }
    if not indices:
        raise ClassesError(f"the model has neither {name!r} nor a class below it: name another class.")
    return indices


def _normalised(name: str) -> str:
    """Lower case without underscores: FSD50K writes ``Bass_drum`` for AudioSet's ``Bass drum``."""
    return name.replace("_", " ").strip().lower()
