"""Which classes somebody asks for: by name or mid, a class with its children where an ontology is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from psla_jax.ontology import Ontology, Vocabulary


class ClassesError(ValueError):
    """Classes that cannot be selected; the message names them."""


def selected(
    vocabulary: Vocabulary, allow: Sequence[str], deny: Sequence[str], ontology: Ontology | None = None
) -> list[int] | None:
    """Indices of the classes asked for.

    Args:
        vocabulary: the model's classes.
        allow: names or mids; none for all classes.
        deny: names or mids to leave out, also of those allowed.
        ontology: where it is given, a class stands for itself and everything below it, and may be one that the model
            itself lacks; without it, each stands for itself alone.

    Returns:
        Ascending indices; None for all.

    Raises:
        ClassesError: a name is unknown, or nothing is left.
    """
    if not allow and not deny:
        return None
    kept = {i for name in allow for i in _meant(name, vocabulary, ontology)} if allow else set(range(len(vocabulary)))
    kept -= {i for name in deny for i in _meant(name, vocabulary, ontology)}
    if not kept:
        raise ClassesError("no class is left of those asked for: allow more of them, or deny fewer.")
    return sorted(kept)


def _meant(name: str, vocabulary: Vocabulary, ontology: Ontology | None) -> set[int]:
    """The model's classes that a name or mid stands for."""
    known = {**_by_name(vocabulary.mids, vocabulary.names), **{mid: mid for mid in vocabulary.mids}}
    if ontology is not None:
        classes = ontology.classes.values()
        known = {**_by_name(ontology.classes, (c.name for c in classes)), **known, **{c: c for c in ontology.classes}}
    mid = known.get(name, known.get(_plain(name)))
    if mid is None:
        near = get_close_matches(_plain(name), [k for k in known if not k.startswith("/")], 1, 0.5)
        hint = f": did you mean {near[0]!r}?" if near else ": name classes as the model does, or by their mid."
        raise ClassesError(f"there is no class {name!r}{hint}")
    below = _below(mid, ontology) if ontology is not None and mid in ontology else {mid}
    found = {vocabulary.index(m) for m in below if m in vocabulary}
    if not found:
        raise ClassesError(f"the model knows neither {name!r} nor a class below it: name another one.")
    return found


def _below(mid: str, ontology: Ontology) -> set[str]:
    """A class and all its descendants."""
    found, waiting = {mid}, [mid]
    while waiting:
        for child in ontology.children(waiting.pop()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def _by_name(mids: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    return {_plain(name): mid for mid, name in zip(mids, names)}


def _plain(name: str) -> str:
    """A name without case and underscores: FSD50K writes ``Bass_drum`` what AudioSet calls ``Bass drum``."""
    return name.replace("_", " ").strip().lower()
