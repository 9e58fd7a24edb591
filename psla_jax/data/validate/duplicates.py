"""Checks for identical audio and repeated files, within a data set and between data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from psla_jax.audio.segments import split_fragment
from psla_jax.data.validate.findings import Finding, MeasuredDataset, finding_for_items, format_count


def check_overlap(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports clips whose audio or file name also occurs in a data set that should be disjoint from this one."""
    clips, digests = _audible_clips(dataset)
    for name, other in dataset.against.items():
        other_clips, other_digests = _audible_clips(other)
        first_clip = dict(zip(other_digests[::-1].tolist(), other_clips[::-1].tolist()))
        shared = {clip: first_clip[d] for clip, d in zip(clips.tolist(), digests.tolist()) if d in first_clip}
        yield from finding_for_items(
            [f"{a} = {b}" for a, b in zip(dataset.clip_ids(shared), other.clip_ids(shared.values()))],
            "overlap",
            "error",
            f"Identical audio in {name}",
            f"Metrics on {name} would be too high, because a part of it was used for training.",
            "Remove the clips from one of the two sets.",
            "clip",
            len(dataset.table),
        )
        same_recording = _clips_of_recordings(dataset, other) - set(shared)
        yield from dataset.finding_for_clips(
            sorted(same_recording),
            "overlap-by-recording",
            "warning",
            f"Other segments of recordings in {name}",
            f"Segments of one recording are alike, and may overlap in time, so metrics on {name} would be too high.",
            "Put all segments of a recording into one set.",
        )
        yield from _check_file_names(dataset, other, name, set(shared) | same_recording)
        yield from finding_for_items(
            [f"{problem.path} {problem.reason}" for problem in other.measurements.problems],
            "against-unreadable",
            "warning",
            f"Unreadable clips in {name}",
            "Whether these clips occur in both sets is unknown; evaluation skips them.",
            "Run psla check on that data set.",
            "clip",
            len(other.datafile),
        )


def _clips_of_recordings(dataset: MeasuredDataset, other: MeasuredDataset) -> set[int]:
    """Returns the clips whose recording is in both sets, if one of them has a segment of it."""
    fragments: dict[str, str] = {}
    for clip in other.clip_ids(range(len(other.datafile))):
        recording, fragment = split_fragment(clip)
        fragments[recording] = fragments.get(recording, "") or fragment
    named = enumerate(map(split_fragment, dataset.clip_ids(range(len(dataset.datafile)))))
    return {i for i, (file, fragment) in named if file in fragments and (fragment or fragments[file])}


def _check_file_names(
    dataset: MeasuredDataset, other: MeasuredDataset, name: str, reported: set[int]
) -> Iterator[Finding]:
    """Reports clips with a file name of `other`, except `reported` ones."""
    stems = set(map(_stem, other.clip_ids(range(len(other.datafile)))))
    # Running numbers such as 0017 do not identify a recording; Freesound ids have five digits and more.
    stems -= {stem for stem in stems if stem.isdigit() and len(stem) < 5}
    shared = [i for i, clip in enumerate(dataset.clip_ids(range(len(dataset.datafile)))) if _stem(clip) in stems]
    yield from dataset.finding_for_clips(
        [i for i in shared if i not in reported],
        "overlap-by-name",
        "note",
        f"File names that also occur in {name}",
        "The audio differs or was not read: this may be one recording in two formats, which would make metrics too "
        "high, or a coincidence.",
        "Listen to one or two of the clips.",
    )


def _stem(clip_id: str) -> str:
    return os.path.splitext(os.path.basename(split_fragment(clip_id)[0]))[0]


def check_repeated_files(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports files with several records, for example one record per label."""
    data = dataset.datafile
    hashes = np.fromiter(map(hash, dataset.clip_ids(range(len(data)))), np.int64)
    same_labels: list[str] = []
    different_labels: list[str] = []
    for group in _groups(hashes):
        labels = {tuple(sorted(data.labels(int(i)))) for i in group}
        items = same_labels if len(labels) == 1 else different_labels
        items.append(f"{data.clip_id(int(group[0]))}  {len(group)} times")
    yield from finding_for_items(
        different_labels,
        "listed-with-other-labels",
        "error",
        "Listed several times with different labels",
        "Each record marks the labels of the other records as absent, so the training targets contradict each other.",
        "Merge the records of each file into one record with all labels.",
        "file",
        None,
    )
    yield from finding_for_items(
        same_labels,
        "listed-twice",
        "warning",
        "Listed several times",
        "These files count several times in training and in metrics, and their scores have the same clip id.",
        "Keep one record of each file.",
        "file",
        None,
    )


def check_duplicates(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports different files with identical audio."""
    data = dataset.datafile
    clips, digests = _audible_clips(dataset)
    groups = [{data.clip_id(i): i for i in clips[group].tolist()} for group in _groups(digests)]
    groups = [files for files in groups if len(files) > 1]
    if groups:
        num_contradicting = sum(len({tuple(sorted(data.labels(i))) for i in files.values()}) > 1 for files in groups)
        num_copies = sum(len(files) - 1 for files in groups)
        contradicting = f" In {format_count(num_contradicting, 'group')} the labels contradict each other."
        labels = contradicting if num_contradicting else ""
        yield Finding(
            "duplicates",
            "warning",
            f"Copies of other clips: {format_count(num_copies, 'clip', len(dataset.table))}",
            f"{format_count(len(groups), 'group')} of files with identical audio.{labels} Copies count several times "
            "in training, and a random split puts them into both parts.",
            "Keep one file of each group.",
            num_copies,
            [" = ".join(files) for files in groups],
        )


def _audible_clips(dataset: MeasuredDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices and digests of clips that are not silent; all silence has the same digest."""
    audible = dataset.table["mono_peak"] > 0
    return dataset.measurements.clips[audible], dataset.table["digest"][audible]


def _groups(values: np.ndarray) -> list[np.ndarray]:
    """Returns the positions of each value that occurs more than once, in the order of first occurrence."""
    order = np.argsort(values, kind="stable")
    new = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    groups = [group for group in np.split(order, new) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))
