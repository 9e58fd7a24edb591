"""Checks of the labels of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from psla_jax.config import is_exclusive
from psla_jax.data.validate.findings import Finding, MeasuredDataset, finding_for_items, format_count


def check_label_counts(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports clips without labels and, for cross-entropy, clips with several labels."""
    counts = np.diff(dataset.datafile.label_offsets)
    if not counts.any():
        yield Finding(
            "no-labels",
            "error",
            "No clip has a label",
            "There are no targets to train on.",
            'Write the mids of the classes of each clip into its "labels", separated by commas.',
            len(counts),
        )
        return
    yield from dataset.finding_for_clips(
        np.flatnonzero(counts == 0),
        "unlabelled",
        "warning",
        "Without labels",
        "Training treats every class as absent from these clips.",
        "Keep the clips if that is correct; otherwise label them or remove them from the datafile.",
    )
    if is_exclusive(dataset.loss):
        yield from dataset.finding_for_clips(
            np.flatnonzero(counts != 1),
            "not-single",
            "error",
            "Not exactly one label",
            f"The config trains with cross-entropy (optimizer.loss {dataset.loss}), which requires one class per clip.",
            "Train with --optimizer.loss bce, or correct the labels.",
        )


def check_unknown_labels(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports labels that are not in the vocabulary, the most frequent first."""
    clips, classes = _label_pairs(dataset)
    unknown = classes >= dataset.num_known_classes
    labels, first, counts = np.unique(classes[unknown], return_index=True, return_counts=True)
    if len(labels):
        examples = dataset.clip_ids(clips[unknown][first])
        items = [
            f"{dataset.mids[c]}  in {format_count(n, 'clip')}, such as {clip}"
            for c, n, clip in zip(labels.tolist(), counts.tolist(), examples)
        ]
        yield Finding(
            "unknown-labels",
            "error",
            f"Labels that are not in the vocabulary: {len(labels):,}",
            "The datafile belongs to another label file, or has classes that this one lacks; training refuses it.",
            "Use the label file that the datafile was made with, or remove these labels.",
            len(labels),
            [items[k] for k in np.argsort(-counts, kind="stable")],
        )


def check_absent_classes(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports classes of the vocabulary without clips."""
    counts, num_classes = dataset.datafile.class_counts(), dataset.num_known_classes
    if counts.any():
        yield from finding_for_items(
            [f"{dataset.class_name(c)}  {dataset.mids[c]}" for c in range(num_classes) if not counts[c]],
            "absent-classes",
            "warning",
            "Without a single clip",
            "These classes cannot be learned from this set, and metrics on this set exclude them.",
            "Add clips of these classes, or train with a vocabulary without them.",
            "class",
            num_classes,
        )


def check_hierarchy(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports missing parent and child labels, and classes that are not in the ontology."""
    if dataset.ontology is None:
        return
    ontology, num_classes = dataset.ontology, dataset.num_known_classes
    inside = {mid: c for c, mid in enumerate(dataset.mids[:num_classes]) if mid in ontology}
    yield from finding_for_items(
        [f"{dataset.class_name(c)}  {mid}" for c, mid in enumerate(dataset.mids[:num_classes]) if mid not in inside],
        "not-in-ontology",
        "warning",
        "Not in the ontology",
        "Missing parent labels of these classes are not detected, and psla enhance cannot add them.",
        "Use the ontology that belongs to the vocabulary.",
        "class",
        num_classes,
    )
    pairs = sorted((inside[up], c) for mid, c in inside.items() for up in ontology.ancestors(mid) if up in inside)
    children = {c: [inside[down] for down in ontology.children(mid) if down in inside] for mid, c in inside.items()}
    yield from _check_parents(dataset, pairs)
    yield from _check_children(dataset, {parent: below for parent, below in children.items() if below})


def _check_parents(dataset: MeasuredDataset, pairs: list[tuple[int, int]]) -> Iterator[Finding]:
    """Reports clips of the second class of a pair without the first, its ancestor."""
    clips_of = _clips_by_class(dataset)
    missing: list[tuple[np.ndarray, str]] = []
    for parent, child in pairs:
        clips = np.setdiff1d(clips_of[child], clips_of[parent], assume_unique=True)
        if len(clips):
            names = f"{dataset.class_name(child)} without {dataset.class_name(parent)}"
            example = dataset.clip_ids(clips[:1])[0]
            missing.append((clips, f"{names}  in {format_count(len(clips), 'clip')}, such as {example}"))
    if missing:
        total = sum(len(clips) for clips, _ in missing)
        count = len(np.unique(np.concatenate([clips for clips, _ in missing])))
        yield Finding(
            "missing-parents",
            "warning",
            f"Labels without their parents: {format_count(count, 'clip', len(dataset.datafile))}",
            f"Training treats these parents as absent although a child is labelled: {format_count(total, 'label')}.",
            "Add the parents that a model confirms with psla enhance.",
            count,
            [text for _, text in sorted(missing, key=lambda entry: -len(entry[0]))],
        )


def _check_children(dataset: MeasuredDataset, children: dict[int, list[int]]) -> Iterator[Finding]:
    clips_of = _clips_by_class(dataset)
    missing: list[tuple[np.ndarray, str]] = []
    for parent, below in children.items():
        clips = np.setdiff1d(clips_of[parent], np.concatenate([clips_of[child] for child in below]))
        if len(clips):
            missing.append((clips, f"{dataset.class_name(parent)}  in {format_count(len(clips), 'clip')}"))
    if missing:
        count = len(np.unique(np.concatenate([clips for clips, _ in missing])))
        yield Finding(
            "missing-children",
            "note",
            f"Labels of parent classes without any child: {format_count(count, 'clip', len(dataset.datafile))}",
            "The annotators did not specify the child class, or it is none of the children; training treats all "
            "children as absent.",
            "Add the children that a model confirms with psla enhance.",
            count,
            [text for _, text in sorted(missing, key=lambda entry: -len(entry[0]))],
        )


def _label_pairs(dataset: MeasuredDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clip index and the class index of every label of the data set, in the order of the clips."""
    data = dataset.datafile
    return np.repeat(np.arange(len(data)), np.diff(data.label_offsets)), data.label_indices


def _clips_by_class(dataset: MeasuredDataset) -> list[np.ndarray]:
    """Returns the indices of the clips with each class, ascending."""
    clips, classes = _label_pairs(dataset)
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes, minlength=len(dataset.mids)))
    return np.split(clips[order], ends[:-1])
