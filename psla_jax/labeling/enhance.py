"""Label enhancement of a datafile (``psla enhance``): reading, writing and reporting; see ``labeling.rules``."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from psla_jax.config import KINDS, Kind, Threshold
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.data.datasets import DEMO, data_notes, locate
from psla_jax.labeling import score_matching
from psla_jax.labeling.rules import MERGED, Enhancement, Labels, Relations, enhance
from psla_jax.runtime.files import atomic_text, removed_on_failure
from psla_jax.runtime.logging import Logger
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

_MAX_CLASSES = 10
"""Number of classes shown on the screen; the CSV file lists all."""


class EnhancementError(ValueError):
    """A request that cannot be carried out; the message names the remedy."""


@dataclass(frozen=True)
class Request:
    """Input and output of an enhancement; the fields are the options of ``psla enhance``."""

    data: str
    scores: str
    labels: str
    ontology: str
    threshold: tuple[Threshold, ...] = ("mean",)
    type: tuple[Kind, ...] = KINDS
    out: str = ""
    force: bool = False

    def resolved(self) -> Request:
        """Returns the request with a local datafile, and with each threshold and type only once."""
        data = locate(self.data) if self.data.startswith(DEMO) and self.out else self.data
        thresholds, types = tuple(dict.fromkeys(self.threshold)), tuple(dict.fromkeys(self.type))
        return replace(self, data=data, threshold=thresholds, type=types)

    def stem(self) -> str:
        """Returns the common prefix of all result paths."""
        folder = self.out or os.path.dirname(self.data)
        return os.path.join(folder, os.path.splitext(os.path.basename(self.data))[0])

    def datafile(self, kind: Kind, name: Threshold) -> str:
        """Returns the path of an enhanced datafile, named as in the reference."""
        return f"{self.stem()}_{kind}_{name}.json"

    def table(self, name: Threshold) -> str:
        """Returns the path of the table with the number of labels added per class."""
        return f"{self.stem()}_added_{name}.csv"

    def outputs(self) -> list[str]:
        """Returns the paths of all files to write: datafiles, their sampling weights, and tables."""
        datafiles = [self.datafile(kind, name) for name in self.threshold for kind in self.type]
        return [*datafiles, *map(datafile.weight_path, datafiles), *map(self.table, self.threshold)]

    def check_overwrite(self) -> None:
        """Raises EnhancementError if there is nothing to write, no folder to write to, or a file would be replaced."""
        if not self.threshold or not self.type:
            raise EnhancementError("no result is requested: name at least one threshold and one type.")
        if self.data.startswith(DEMO):
            raise EnhancementError(f"{self.data} is in the cache: name the folder for the results with --out DIR.")
        existing = [path for path in self.outputs() if os.path.exists(path)]
        if existing and not self.force:
            files = existing[0] + (f" and {len(existing) - 1} more" if len(existing) > 1 else "")
            remedy = "name another folder with --out, or replace with --force."
            raise EnhancementError(f"{files} would be overwritten: {remedy}")


def run(request: Request, logger: Logger) -> tuple[str, ...]:
    """Enhances a datafile, writes the results, prints a summary and returns the paths of the enhanced datafiles.

    Raises:
        ValueError: an input cannot be used or an output file already exists (a subclass of this package, whose message
            names the file and the remedy); nothing is written.
    """
    request = request.resolved()
    request.check_overwrite()
    vocabulary = Vocabulary.read(locate(request.labels, logger.info))
    relations = Relations.from_ontology(vocabulary, Ontology.read(locate(request.ontology, logger.info)))
    data = Datafile.read(request.data, vocabulary)
    matched = score_matching.read(request.scores, data, vocabulary)
    enhancement = enhance(Labels.from_datafile(data), matched.scores, relations, request.threshold)
    for note in (
        *data_notes(data, held_out=False),
        *matched.notes,
        *_inactive_class_notes(enhancement, relations, vocabulary),
    ):
        logger.info(note)
    with removed_on_failure(request.outputs()):
        paths = _write(enhancement, data, vocabulary, request)
    for path in paths if data.exclusive else ():
        if not datafile.declares_exclusive(path):
            logger.info(f"{path}: clips have several labels now, so its classes are not declared as exclusive")
    _show(enhancement, relations, vocabulary, request, logger)
    return paths


def _inactive_class_notes(enhancement: Enhancement, relations: Relations, vocabulary: Vocabulary) -> list[str]:
    """Returns notes about classes that add no labels or are never added."""
    total = enhancement.labels.num_classes
    unscored = [vocabulary.mids[index] for index in np.flatnonzero(enhancement.scored == 0)]
    groups = {
        "have no clip with scores, so they have no threshold and are not added": unscored,
        "are excluded as abstract: their labels add nothing": relations.abstract,
        "are not in the ontology: they add nothing and are not added": relations.unknown,
    }
    return [f"{len(mids)} of {total} classes, such as {mids[0]}, {reason}" for reason, mids in groups.items() if mids]


# ---- result files


def _write(enhancement: Enhancement, data: Datafile, vocabulary: Vocabulary, request: Request) -> tuple[str, ...]:
    """Writes the datafiles, their sampling weights and a table per threshold, each atomically."""
    os.makedirs(os.path.dirname(request.stem()) or ".", exist_ok=True)
    # Relative audio paths become absolute if the results go to another folder.
    moved = os.path.abspath(os.path.dirname(request.stem())) != os.path.dirname(data.source)
    wavs = [data.wav(clip) if moved else data.path(clip) for clip in range(len(data))]
    paths = []
    for name in request.threshold:
        for kind in request.type:
            path = request.datafile(kind, name)
            weights = datafile.weight_path(path)
            # If the run is interrupted, no datafile may have the weights of other labels.
            Path(weights).unlink(missing_ok=True)
            enhanced = _with_labels(data, enhancement.after(kind, name), vocabulary)
            datafile.write(path, _records(wavs, enhanced, vocabulary), exclusive=_is_exclusive(enhanced))
            datafile.write_weights(enhanced, weights)
            paths.append(path)
        _write_table(enhancement, vocabulary, name, request)
    return tuple(paths)


def _is_exclusive(data: Datafile) -> bool:
    """Returns whether the classes were exclusive and no label was added, so that they still are."""
    return data.exclusive and bool((np.diff(data.label_offsets) == 1).all())


def _with_labels(data: Datafile, labels: Labels, vocabulary: Vocabulary) -> Datafile:
    """Returns the datafile with other labels; those of a clip are sorted by mid."""
    rank = np.argsort(np.argsort(np.array(vocabulary.mids, dtype=str), kind="stable"))
    clips, classes = labels.clips(), labels.classes()
    order = np.argsort(clips * labels.num_classes + rank[classes])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(clips, minlength=labels.num_clips))])
    return replace(data, label_indices=classes[order].astype(np.int32), label_offsets=offsets)


def _records(wavs: list[str], data: Datafile, vocabulary: Vocabulary) -> Iterator[Record]:
    mids = [vocabulary.mids[index] for index in data.label_indices.tolist()]
    offsets = data.label_offsets.tolist()
    return (Record(wav, mids[offsets[clip] : offsets[clip + 1]], *data.time(clip)) for clip, wav in enumerate(wavs))


def _write_table(enhancement: Enhancement, vocabulary: Vocabulary, name: Threshold, request: Request) -> None:
    """Writes a row per class: clips with it, those with scores, threshold, and clips that gain it by each kind."""
    before = enhancement.labels.counts()
    gains = [enhancement.counts(kind, name) for kind in request.type]
    with atomic_text(request.table(name)) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "mid", "display_name", "clips", "scored", "threshold", *request.type])
        for index, (mid, display) in enumerate(zip(vocabulary.mids, vocabulary.names)):
            limit = enhancement.thresholds[name][index]
            threshold = "" if np.isnan(limit) else repr(float(limit))
            counts = [before[index], enhancement.scored[index], threshold, *(gain[index] for gain in gains)]
            writer.writerow([index, mid, display, *counts])


# ---- summary on the screen


def _show(
    enhancement: Enhancement, relations: Relations, vocabulary: Vocabulary, request: Request, logger: Logger
) -> None:
    logger.console.print(_class_table(enhancement, vocabulary, request.threshold[0], request.type))
    logger.console.print(_label_table(enhancement, relations, request))
    files = [os.path.basename(request.datafile(kind, name)) for name in request.threshold for kind in request.type]
    folder = os.path.dirname(request.stem()) or "."
    logger.info(f"{len(files)} datafiles, each with its weights, in {folder}: {', '.join(files)}")
    logger.info(f"labels added per class: {', '.join(map(request.table, request.threshold))}")


def _class_table(enhancement: Enhancement, vocabulary: Vocabulary, name: Threshold, kinds: tuple[Kind, ...]) -> Table:
    """Returns a table of the classes with the most added labels."""
    gains = {kind: enhancement.counts(kind, name) for kind in kinds}
    main = gains[MERGED if MERGED in gains else kinds[0]]
    order = [index for index in np.argsort(-main, kind="stable") if main[index]]
    table = Table(title=f"labels added at the threshold {name}", title_justify="left")
    table.add_column("class", overflow="fold")
    for column in ("clips", *(f"+ {kind}" for kind in kinds), "threshold"):
        table.add_column(column, justify="right", no_wrap=True)
    columns = [enhancement.labels.counts(), *gains.values()]
    for index in order[:_MAX_CLASSES]:
        counts = [f"{column[index]:,}" for column in columns]
        table.add_row(escape(vocabulary.names[index]), *counts, f"{enhancement.thresholds[name][index]:.3g}")
    if others := order[_MAX_CLASSES:]:
        table.add_section()
        table.add_row(f"{len(others)} more classes", *(f"{column[others].sum():,}" for column in columns), "")
    return table


def _label_table(enhancement: Enhancement, relations: Relations, request: Request) -> Table:
    """Returns a table of the original and enhanced labels: their number, and missing parents and children."""
    table = Table(title=escape(f"labels of {request.data}"), title_justify="left")
    table.add_column("labels", no_wrap=True)
    for column in ("count", "added", "clips changed", "without parent", "without child"):
        table.add_column(column, justify="right")

    def row(title: str, labels: Labels, added: str = "", changed: str = "") -> None:
        errors = f"{labels.without_parent(relations):,}", f"{labels.without_child(relations):,}"
        table.add_row(title, f"{len(labels):,}", added, changed, *errors)

    before = enhancement.labels
    row("before", before)
    for name in request.threshold:
        table.add_section()
        for kind in request.type:
            count = len(enhancement.added[kind, name])
            added = f"{count:,} ({count / max(len(before), 1):.1%})"
            row(f"{kind}_{name}", enhancement.after(kind, name), added, f"{enhancement.clips_changed(kind, name):,}")
    return table
