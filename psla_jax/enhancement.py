"""Label enhancement from files to files: ``psla enhance``. The rules are in ``labeling``."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from psla_jax import score_files
from psla_jax.config import KINDS, Kind, Threshold
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.data.sets import DEMO, locate
from psla_jax.files import written_aside
from psla_jax.journal import Journal
from psla_jax.labeling import MERGED, Enhancement, Labels, Relations, enhance
from psla_jax.ontology import Ontology, Vocabulary

_SHOWN = 10
"""Classes shown on the screen; the CSV has all."""


class EnhancementError(ValueError):
    """Enhancement that cannot be done as asked; the message says what to do."""


@dataclass(frozen=True)
class Output:
    """Where the results go, and which they are."""

    data: str
    """The datafile that is enhanced: results are named after it."""
    thresholds: tuple[Threshold, ...] = ("mean",)
    kinds: tuple[Kind, ...] = KINDS
    folder: str = ""
    """Empty: that of the datafile."""
    force: bool = False
    """Replace files that are there."""

    def stem(self) -> str:
        """What every result's path begins with."""
        folder = self.folder or os.path.dirname(self.data)
        return os.path.join(folder, os.path.splitext(os.path.basename(self.data))[0])

    def datafile(self, kind: Kind, name: Threshold) -> str:
        """The path of an enhanced datafile, under the reference's name."""
        return f"{self.stem()}_{kind}_{name}.json"

    def table(self, name: Threshold) -> str:
        """The path of the table of what was added to each class."""
        return f"{self.stem()}_added_{name}.csv"

    def require_place(self) -> None:
        """Raises EnhancementError if results would replace files, or have no name to take."""
        if not self.thresholds or not self.kinds:
            raise EnhancementError("there is nothing to make: name at least one threshold and one type.")
        if self.data.startswith(DEMO):
            raise EnhancementError(f"{self.data} is in the cache: name the folder for the results with --out DIR.")
        made = [self.datafile(kind, name) for name in self.thresholds for kind in self.kinds]
        paths = [*made, *map(datafile.weight_path, made), *map(self.table, self.thresholds)]
        there = [path for path in paths if os.path.exists(path)]
        if there and not self.force:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise EnhancementError(
                f"{there[0]}{more} would be overwritten: name another folder with --out, or replace with --force."
            )


@dataclass(frozen=True)
class Request:
    """What to enhance by what. Fields as in ``psla enhance``."""

    data: str
    scores: str
    labels: str
    ontology: str
    threshold: tuple[Threshold, ...] = ("mean",)
    type: tuple[Kind, ...] = KINDS
    out: str = ""
    force: bool = False

    def output(self) -> Output:
        """Where its results go."""
        data = self.data
        if data.startswith(DEMO) and self.out:
            data = locate(data)
        return Output(data, tuple(dict.fromkeys(self.threshold)), tuple(dict.fromkeys(self.type)), self.out, self.force)


def run(request: Request, journal: Journal) -> tuple[str, ...]:
    """Reads, enhances, writes and shows. Returns the paths of the datafiles written.

    Raises:
        ValueError: one of this package's own, naming the file and the remedy; nothing is written then.
    """
    output = request.output()
    output.require_place()
    vocabulary = Vocabulary.read(locate(request.labels, journal.say))
    relations = Relations.of(vocabulary, Ontology.read(locate(request.ontology, journal.say)))
    data = Datafile.read(output.data, vocabulary)
    found = score_files.read(request.scores, data, vocabulary)
    enhancement = enhance(Labels.of(data), found.scores, relations, output.thresholds)
    for note in (*found.notes, *_silences(enhancement, relations, vocabulary)):
        journal.say(note)
    written = _write(enhancement, data, vocabulary, output)
    _show(enhancement, relations, vocabulary, output, journal)
    return written


def _silences(enhancement: Enhancement, relations: Relations, vocabulary: Vocabulary) -> list[str]:
    """Which classes add nothing, or are added nowhere."""
    names, total = vocabulary.mids, enhancement.labels.num_classes
    reasons = {
        "have no clip with scores, so no threshold, and are not added": [
            names[index] for index in np.flatnonzero(enhancement.scored == 0)
        ],
        "are left out by the rule as abstract: their labels add nothing": relations.abstract,
        "are not in the ontology: they add nothing and are not added": relations.unknown,
    }
    return [
        f"{len(found)} of {total} classes, such as {found[0]}, {reason}" for reason, found in reasons.items() if found
    ]


# ---- what is written


def _write(enhancement: Enhancement, data: Datafile, vocabulary: Vocabulary, output: Output) -> tuple[str, ...]:
    """Datafiles, their weights, and a table per threshold; each file appears whole."""
    os.makedirs(os.path.dirname(output.stem()) or ".", exist_ok=True)
    paths = _paths(data, output)
    written = []
    for name in output.thresholds:
        for kind in output.kinds:
            path = output.datafile(kind, name)
            weights = datafile.weight_path(path)
            # Weights never lie beside labels that they do not belong to.
            Path(weights).unlink(missing_ok=True)
            enhanced = _relabelled(data, enhancement.after(kind, name), vocabulary)
            datafile.write(path, _records(paths, enhanced, vocabulary))
            datafile.write_weights(enhanced, weights)
            written.append(path)
        _write_table(enhancement, vocabulary, name, output)
    return tuple(written)


def _paths(data: Datafile, output: Output) -> list[str]:
    """The clips' paths as they have to be written: relative ones hold only in the folder of the datafile."""
    moved = os.path.abspath(os.path.dirname(output.stem())) != os.path.dirname(data.source)
    return [data.wav(clip) if moved else data.path(clip) for clip in range(len(data))]


def _relabelled(data: Datafile, labels: Labels, vocabulary: Vocabulary) -> Datafile:
    """The datafile with other labels, those of a clip sorted by mid."""
    by_mid = np.argsort(np.array(vocabulary.mids, dtype=str), kind="stable")
    rank = np.argsort(by_mid)
    clips = labels.clips()
    order = np.argsort(clips * labels.num_classes + rank[labels.classes()])
    counts = np.bincount(clips, minlength=labels.num_clips)
    return replace(
        data,
        label_indices=labels.classes()[order].astype(np.int32),
        label_offsets=np.concatenate([[0], np.cumsum(counts)]),
    )


def _records(paths: list[str], data: Datafile, vocabulary: Vocabulary) -> Iterator[tuple[str, list[str]]]:
    mids = [vocabulary.mids[index] for index in data.label_indices.tolist()]
    ends = data.label_offsets.tolist()
    return ((path, mids[ends[clip] : ends[clip + 1]]) for clip, path in enumerate(paths))


def _write_table(enhancement: Enhancement, vocabulary: Vocabulary, name: Threshold, output: Output) -> None:
    """Every class: clips that have it, those with scores, its threshold, and how many clips gained it by each kind."""
    before = enhancement.labels.counts()
    gains = [enhancement.counts(kind, name) for kind in output.kinds]
    with written_aside(output.table(name)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "mid", "display_name", "clips", "scored", "threshold", *output.kinds])
        for index, (mid, display) in enumerate(zip(vocabulary.mids, vocabulary.names)):
            limit = enhancement.thresholds[name][index]
            limits = "" if np.isnan(limit) else repr(float(limit))
            counts = [before[index], enhancement.scored[index], limits, *(gain[index] for gain in gains)]
            writer.writerow([index, mid, display, *counts])


# ---- what is shown


def _show(
    enhancement: Enhancement, relations: Relations, vocabulary: Vocabulary, output: Output, journal: Journal
) -> None:
    for name in output.thresholds[:1]:
        journal.console.print(_classes(enhancement, vocabulary, name, output.kinds))
    journal.console.print(_sets(enhancement, relations, output))
    files = [os.path.basename(output.datafile(kind, name)) for name in output.thresholds for kind in output.kinds]
    folder = os.path.dirname(output.stem()) or "."
    journal.say(f"{len(files)} datafiles, each with its weights, in {folder}: {', '.join(files)}")
    journal.say(f"what each class gained: {', '.join(map(output.table, output.thresholds))}")


def _classes(enhancement: Enhancement, vocabulary: Vocabulary, name: Threshold, kinds: tuple[Kind, ...]) -> Table:
    """The classes that gained the most."""
    gains = {kind: enhancement.counts(kind, name) for kind in kinds}
    main = gains[MERGED if MERGED in gains else kinds[0]]
    order = [index for index in np.argsort(-main, kind="stable") if main[index]]
    table = Table(title=f"labels added at the threshold {name}", title_justify="left")
    table.add_column("class", overflow="fold")
    for column in ("clips", *(f"+ {kind}" for kind in kinds), "threshold"):
        table.add_column(column, justify="right", no_wrap=True)
    before = enhancement.labels.counts()
    for index in order[:_SHOWN]:
        counts = [f"{before[index]:,}", *(f"{gain[index]:,}" for gain in gains.values())]
        table.add_row(escape(vocabulary.names[index]), *counts, f"{enhancement.thresholds[name][index]:.3g}")
    if len(order) > _SHOWN:
        rest = order[_SHOWN:]
        table.add_section()
        counts = [f"{before[rest].sum():,}", *(f"{gain[rest].sum():,}" for gain in gains.values())]
        table.add_row(f"{len(rest)} classes more", *counts, "")
    return table


def _sets(enhancement: Enhancement, relations: Relations, output: Output) -> Table:
    """Each set of labels: how many, and how many parents and children are missing."""
    table = Table(title=f"labels of {output.data}", title_justify="left")
    table.add_column("labels", no_wrap=True)
    for column in ("count", "added", "clips changed", "without parent", "without child"):
        table.add_column(column, justify="right")

    def row(title: str, labels: Labels, added: str = "", changed: str = "") -> None:
        errors = f"{labels.without_parent(relations):,}", f"{labels.without_child(relations):,}"
        table.add_row(title, f"{len(labels):,}", added, changed, *errors)

    before = enhancement.labels
    row("before", before)
    for name in output.thresholds:
        table.add_section()
        for kind in output.kinds:
            count = len(enhancement.added[kind, name])
            added = f"{count:,} ({count / max(len(before), 1):.1%})"
            row(f"{kind}_{name}", enhancement.after(kind, name), added, f"{enhancement.clips_changed(kind, name):,}")
    return table
