"""What can be wrong with the labels of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from psla_jax.data.findings import Examined, Finding, many


def nothing_to_learn(examined: Examined) -> Iterator[Finding]:
    """Clips without a label, and sets of them."""
    counts = np.diff(examined.data.label_offsets)
    if not counts.any():
        yield Finding(
            "no-labels",
            "error",
            "No clip has a label",
            "There is nothing to learn from.",
            'Write the classes of each clip into its "labels", joined by commas.',
            len(counts),
        )
        return
    yield from examined.of_clips(
        np.flatnonzero(counts == 0),
        "unlabelled",
        "warning",
        "Without a label",
        "To the model they say that none of the classes is there.",
        "Keep them if that is so; otherwise label them or take them out.",
    )
    if examined.loss == "ce":
        yield from examined.of_clips(
            np.flatnonzero(counts != 1),
            "not-single",
            "error",
            "Not exactly one label",
            "The config trains with cross-entropy (optimizer.loss ce), which wants one class a clip.",
            "Train with --optimizer.loss bce, or mend the labels.",
        )


def unknown_classes(examined: Examined) -> Iterator[Finding]:
    """Labels that the vocabulary lacks."""
    clips, classes = _pairs(examined)
    strange, first, counts = np.unique(classes[classes >= examined.known], return_index=True, return_counts=True)
    if len(strange):
        where = clips[classes >= examined.known][first]
        places = [
            f"{examined.mids[c]}  in {many(n, 'clip')}, such as {clip}"
            for c, n, clip in zip(strange.tolist(), counts.tolist(), examined.ids(where))
        ]
        yield Finding(
            "unknown-labels",
            "error",
            f"Labels that are not in the vocabulary: {len(strange):,}",
            "The datafile belongs to another label file, or has classes that this one lacks. Training refuses it.",
            "Name the label file it was made with, or remove these labels.",
            len(strange),
            [places[k] for k in np.argsort(-counts, kind="stable")],
        )


def absent_classes(examined: Examined) -> Iterator[Finding]:
    """Classes of the vocabulary that no clip has."""
    absent = np.flatnonzero(examined.data.class_counts()[: examined.known] == 0)
    if len(absent) and examined.data.class_counts().any():
        yield Finding(
            "absent-classes",
            "warning",
            f"Without a single clip: {many(len(absent), 'class', examined.known)}",
            "They cannot be learned from this set, and figures on it leave them out.",
            "Find clips of them, or train with a vocabulary without them.",
            len(absent),
            [f"{examined.class_name(c)}  {examined.mids[c]}" for c in absent.tolist()],
        )


def missing_relatives(examined: Examined) -> Iterator[Finding]:
    """Labels without those of their parents, and classes that the ontology lacks."""
    if examined.ontology is None:
        return
    ontology = examined.ontology
    inside = {mid: c for c, mid in enumerate(examined.mids[: examined.known]) if mid in ontology}
    outside = [c for c in range(examined.known) if examined.mids[c] not in inside]
    if outside:
        yield Finding(
            "not-in-ontology",
            "warning",
            f"Not in the ontology: {many(len(outside), 'class', examined.known)}",
            "Whether their parents are missing cannot be checked, and psla enhance cannot add them.",
            "Name the ontology that belongs to the vocabulary.",
            len(outside),
            [f"{examined.class_name(c)}  {examined.mids[c]}" for c in outside],
        )
    ancestors = {c: [inside[up] for up in ontology.ancestors(mid) if up in inside] for mid, c in inside.items()}
    children = {c: [inside[down] for down in ontology.children(mid) if down in inside] for mid, c in inside.items()}
    yield from _without_parents(examined, ancestors)
    yield from _without_children(examined, children)


def _without_parents(examined: Examined, ancestors: dict[int, list[int]]) -> Iterator[Finding]:
    clips_of = _clips_by_class(examined)
    concerned = np.zeros(len(examined.data), bool)
    places: list[tuple[int, str]] = []
    for parent in sorted({up for ups in ancestors.values() for up in ups}):
        has = np.zeros(len(examined.data), bool)
        has[clips_of[parent]] = True
        for child in (c for c, ups in ancestors.items() if parent in ups):
            lacking = clips_of[child][~has[clips_of[child]]]
            concerned[lacking] = True
            if len(lacking):
                names = f"{examined.class_name(child)} without {examined.class_name(parent)}"
                such = examined.ids(lacking[:1])[0]
                places.append((len(lacking), f"{names}  in {many(len(lacking), 'clip')}, such as {such}"))
    if places:
        total = sum(count for count, _ in places)
        yield Finding(
            "missing-parents",
            "warning",
            f"Labels without their parents: {many(int(concerned.sum()), 'clip', len(examined.data))}",
            f"{many(total, 'parent')} not given where a child is; to the model they say that the parent is not there.",
            "psla enhance adds those that a model confirms.",
            int(concerned.sum()),
            [line for _, line in sorted(places, key=lambda place: -place[0])],
        )


def _without_children(examined: Examined, children: dict[int, list[int]]) -> Iterator[Finding]:
    clips_of = _clips_by_class(examined)
    concerned = np.zeros(len(examined.data), bool)
    places: list[tuple[int, str]] = []
    for parent in (c for c, below in children.items() if below):
        has = np.zeros(len(examined.data), bool)
        for child in children[parent]:
            has[clips_of[child]] = True
        lacking = clips_of[parent][~has[clips_of[parent]]]
        concerned[lacking] = True
        if len(lacking):
            places.append((len(lacking), f"{examined.class_name(parent)}  in {many(len(lacking), 'clip')}"))
    if places:
        yield Finding(
            "missing-children",
            "note",
            f"Classes that have children, without any of these: {many(int(concerned.sum()), 'clip', len(concerned))}",
            "Nobody said which kind it is, or it is none of them.",
            "psla enhance adds the children that a model confirms.",
            int(concerned.sum()),
            [line for _, line in sorted(places, key=lambda place: -place[0])],
        )


def _pairs(examined: Examined) -> tuple[np.ndarray, np.ndarray]:
    """The labels of all clips, one after the other: clip and class of each."""
    data = examined.data
    return np.repeat(np.arange(len(data)), np.diff(data.label_offsets)), data.label_indices


def _clips_by_class(examined: Examined) -> list[np.ndarray]:
    """The clips that have each class, ascending."""
    clips, classes = _pairs(examined)
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes, minlength=len(examined.mids)))
    return np.split(clips[order], ends[:-1])
