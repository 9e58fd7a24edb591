"""Clips of one source, by the file names of public data sets, and exact copies of files.

If they are in the training part and in a held-out part, metrics are too high.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from psla_jax.audio.decode import in_threads
from psla_jax.data.prepare.split import TRAIN
from psla_jax.data.prepare.walk import printable_path
from psla_jax.data.validate.findings import format_count

_FILE_NAMES = {
    "ESC-50": re.compile(r"\d-(?P<source>\d+)-[A-Z]-(?P<target>\d+)"),
    "UrbanSound8K": re.compile(r"(?P<source>\d+)-(?P<target>\d)-\d+-\d+"),
    "Speech Commands": re.compile(r"(?P<source>[0-9a-f]{6,})_nohash_(?P<target>)\d+"),
}
"""File names, without extension, that contain a Freesound id or a speaker, and possibly the number of the class."""
_PROBE = 4096
"""Number of bytes in the middle of a file that are compared before the whole file."""


def by_file_name(paths: Sequence[str], labels: Sequence[tuple[str, ...]]) -> tuple[str, list[str]]:
    """Returns the data set whose file names most clips have, and the source of each clip; empty if unknown.

    In ESC-50 and UrbanSound8K, file names also contain the number of the class. It must fit the labels, so that other
    names of numbers, such as dates, are not mistaken for them.
    """
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    for data_set, pattern in _FILE_NAMES.items():
        matches = [pattern.fullmatch(name) for name in names]
        pairs = {(match["target"], clip) for match, clip in zip(matches, labels) if match and match["target"]}
        consistent = len(pairs) == len({target for target, _ in pairs})
        if consistent and 2 * sum(map(bool, matches)) > len(paths):
            return data_set, [match["source"] if match else "" for match in matches]
    return "", [""] * len(paths)


def exact_copies(paths: Sequence[str], *, progress: bool) -> dict[int, str]:
    """Returns the SHA-256 of every file that another one equals, by its position; unreadable files equal none."""
    positions = {i: "" for i in range(len(paths))}
    for key in (_size, _middle, _content):
        chosen = list(positions)
        values = in_threads(key, [paths[i] for i in chosen], "Comparing recordings", progress=progress)
        keys = {i: f"{positions[i]} {value}" for i, value in zip(chosen, values) if value}
        counts = Counter(keys.values())
        positions = {i: value for i, value in keys.items() if counts[value] > 1}
    return {i: value.rpartition(" ")[2] for i, value in positions.items()}


def _read(path: str, read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return ""


def _size(path: str) -> str:
    return _read(path, lambda: str(os.stat(path).st_size))


def _middle(path: str) -> str:
    def read() -> str:
        with open(path, "rb") as file:
            file.seek(max(0, os.stat(path).st_size - _PROBE) // 2)
            return hashlib.sha256(file.read(_PROBE)).hexdigest()

    return _read(path, read)


def _content(path: str) -> str:
    def read() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return _read(path, read)


def copy_notes(
    paths: Sequence[str], labels: Sequence[tuple[str, ...]], parts: Sequence[str], copies: Mapping[int, str]
) -> Iterator[str]:
    """Yields notes on the copies within each held-out part, between parts, and with different labels.

    `copies` is the result of :func:`exact_copies`.
    """
    members: dict[str, list[int]] = {}
    for i, digest in copies.items():
        members.setdefault(digest, []).append(i)
    groups = list(members.values())
    for part in sorted(set(parts) - {TRAIN}):
        held_out = [[i for i in group if parts[i] == part] for group in groups]
        if repeats := sum(len(group) - 1 for group in held_out if group):
            yield f"copies of other recordings of the {part} part in it, which count again in metrics: {repeats:,}"
        leaked = [i for group, inside in zip(groups, held_out) if any(parts[j] == TRAIN for j in group) for i in inside]
        if leaked:
            yield (
                f"copies of training clips in the {part} part, which make metrics too high: {len(leaked):,}, such as "
                f"{printable_path(paths[leaked[0]])}; delete them"
            )
    if different := [group for group in groups if len({labels[i] for i in group}) > 1]:
        count = sum(map(len, different))
        yield f"recordings with the same content but different labels: {count:,}, such as {_pair(paths, different[0])}"
    if groups:
        yield f"exact copies of other recordings: {len(copies) - len(groups):,}, such as {_pair(paths, groups[0])}"


def _pair(paths: Sequence[str], group: Sequence[int]) -> str:
    return " = ".join(printable_path(paths[i]) for i in group[:2])


def split_notes(groups: Sequence[str], parts: Sequence[str]) -> Iterator[str]:
    """Yields notes on sources that are kept together, and on those with clips in several parts of a split."""
    counts = Counter(filter(None, groups))
    parts_of: dict[str, set[str]] = {}
    for group, part in zip(groups, parts):
        parts_of.setdefault(group, set()).add(part)
    if divided := [group for group in counts if len(parts_of[group]) > 1]:
        yield (
            "sources with clips in several parts of the split, which makes metrics too high: "
            f"{len(divided):,}, such as {divided[0]}"
        )
    elif len(counts) < counts.total():
        of = format_count(len(counts), "source")
        yield f"{counts.total():,} clips are of {of}; all clips of a source are in one part"
