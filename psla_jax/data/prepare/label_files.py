"""Label files of Audacity, each beside the recording that it belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psla_jax.data.prepare import segments
from psla_jax.data.prepare.collection import Clip, Collection, CollectionError, ExcludedClip
from psla_jax.data.prepare.names import class_name
from psla_jax.data.prepare.walk import printable_path

EXTENSION = ".txt"


@dataclass(frozen=True)
class Label:
    """A line of a label file."""

    line: int
    time: tuple[float, float]
    """Start and end in seconds."""
    text: str


def read_audacity(path: str) -> list[Label] | None:
    """Returns the labels of a file with lines of start, end and text, separated by tabs; None for another file.

    Lines with the frequencies of the label before them, which begin with a backslash, are skipped.
    """
    labels = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("\\"):
                    continue
                start, end, *text = line.rstrip("\r\n").split("\t")
                if len(text) > 1:
                    return None
                time = float(start.replace(",", ".")), float(end.replace(",", "."))
                labels.append(Label(number, time, "".join(text)))
    except (OSError, ValueError):
        return None
    return labels or None


def find(recordings: Iterable[str]) -> dict[str, list[Label]]:
    """Returns the labels of each recording that has a label file of the same name beside it."""
    found = {}
    names: dict[str, frozenset[str]] = {}
    for recording in recordings:
        folder, name = os.path.split(recording)
        if folder not in names:
            with contextlib.suppress(OSError):
                names[folder] = frozenset(name for name in os.listdir(folder) if name.endswith(EXTENSION))
        label_file = os.path.splitext(name)[0] + EXTENSION
        if label_file in names.get(folder, ()):
            labels = read_audacity(os.path.join(folder, label_file))
            if labels is not None:
                found[recording] = labels
    return found


def collect(
    labels: dict[str, list[Label]], recordings: Sequence[str], excluded: Sequence[ExcludedClip], *, progress: bool
) -> Collection:
    """Returns the labelled segments of recordings; those without a label file are excluded.

    Raises:
        CollectionError: no label has a text and a duration.
    """
    reason = "has no label file of Audacity beside it: export its labels as a text file, or remove the recording."
    left_out = [*excluded, *(ExcludedClip(path, reason) for path in recordings if path not in labels)]
    clips: list[Clip] = []
    for recording, lines in labels.items():
        entries = [
            (label.line, Clip(recording, tuple(filter(None, [class_name(label.text)])), "", "", *label.time))
            for label in lines
        ]
        merged, invalid = segments.merge(entries, os.path.splitext(recording)[0] + EXTENSION)
        labelled, unlabelled = segments.with_labels(merged)
        clips += labelled
        left_out += [*invalid, *unlabelled]
    if not clips:
        raise CollectionError(f"no label can be used: {printable_path(left_out[0].path)} {left_out[0].reason}")
    exclusive = all(len(clip.labels) == 1 for clip in clips)
    collection = Collection("label files of Audacity", tuple(clips), exclusive, tuple(left_out))
    return segments.describe(collection, "their times", progress)
