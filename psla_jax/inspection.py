"""A data set checked from end to end: ``psla check``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from psla_jax.config import Channel, FrontendConfig, Loss
from psla_jax.data.copy_findings import duplicates, listed_twice, overlap
from psla_jax.data.datafile import read_any
from psla_jax.data.findings import SEVERITIES, Check, Examined, Finding, in_order_of_harm, many
from psla_jax.data.label_findings import absent_classes, missing_relatives, nothing_to_learn, unknown_classes
from psla_jax.data.measure import measure_all, spread
from psla_jax.data.sets import DataError, locate
from psla_jax.data.sound_findings import band, clipping, lengths, log_mel, rates, scale, silence, unreadable
from psla_jax.journal import Journal
from psla_jax.normalisation import log_mel_statistics
from psla_jax.ontology import Ontology, Vocabulary

CHECKS: tuple[Check, ...] = (
    unreadable, nothing_to_learn, unknown_classes, scale, overlap, listed_twice, silence, band, duplicates,
    absent_classes, missing_relatives, log_mel, lengths, clipping, rates,
)  # fmt: skip
"""All there is to find, the worst first."""
LOG_MEL_CLIPS = 1000
"""Clips that the statistics of the log-mel are measured on; more hardly change the second decimal."""


@dataclass(frozen=True)
class Request:
    """What to check, and against what."""

    data: str
    """The datafile."""
    labels: str = ""
    """Label CSV; empty: the classes that are in the datafile."""
    ontology: str = ""
    """AudioSet's ``ontology.json``; empty: parents and children are not checked."""
    against: tuple[str, ...] = ()
    """Datafiles that it should have no clip in common with."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    loss: Loss = "bce"
    channel: Channel = "mean"
    limit: int = 0
    """How many clips of each set are read, evenly spaced; 0 for all."""
    workers: int = 0
    """Threads; 0 for one per core and a few more."""


@dataclass(frozen=True)
class Report:
    """A set, and what was found."""

    examined: Examined
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing has to be repaired."""
        return not any(finding.severity == SEVERITIES[0] for finding in self.findings)


def inspect(request: Request, journal: Journal, say: Callable[[str], None]) -> Report:
    """Reads labels and audio of a set, and the audio of those it should have nothing in common with.

    Args:
        request: what to check.
        journal: shows progress.
        say: told when a part of the embedded data set is made.

    Raises:
        ValueError: one of this package's own, for a datafile, label file or ontology that is none.
    """
    if request.limit < 0 or request.workers < 0:
        raise DataError(f"--limit is {request.limit} and --workers {request.workers}: use 0 or more.")
    vocabulary = Vocabulary.read(locate(request.labels, say)) if request.labels else None
    ontology = Ontology.read(request.ontology) if request.ontology else None
    data, *others = (locate(path, say) for path in (request.data, *request.against))
    sets = {path: _examined(path, request, journal, vocabulary) for path in others}
    examined = replace(
        _examined(data, request, journal, vocabulary),
        ontology=ontology,
        frontend=request.frontend,
        loss=request.loss,
        against={os.path.basename(path) if len(others) == 1 else path: found for path, found in sets.items()},
    )
    examined = _with_log_mel(examined, request, journal)
    return Report(examined, (*in_order_of_harm(CHECKS, examined), *_not_checked(request, examined)))


def _examined(path: str, request: Request, journal: Journal, vocabulary: Vocabulary | None) -> Examined:
    data, mids = read_any(path, vocabulary.mids if vocabulary else ())
    chosen = spread(len(data), request.limit)
    with journal.progress(f"Reading {os.path.basename(path)}", len(data) + len(chosen)) as bar:
        found = measure_all(
            data,
            chosen,
            channel=request.channel,
            workers=request.workers,
            done=lambda clips: bar.advance(count=clips),
        )
    return Examined(data, found, mids, vocabulary)


def _with_log_mel(examined: Examined, request: Request, journal: Journal) -> Examined:
    clips = examined.measurements.clips[examined.table["finite"]]
    clips = clips[spread(len(clips), LOG_MEL_CLIPS)]
    with journal.progress("Measuring the log-mel", len(clips)) as bar:
        found = log_mel_statistics(
            examined.data,
            clips,
            request.frontend,
            channel=request.channel,
            workers=request.workers,
            done=lambda clips: bar.advance(count=clips),
        )
    return replace(examined, log_mel=found)


def _not_checked(request: Request, examined: Examined) -> list[Finding]:
    """What the request left out."""
    left_out = []
    if examined.measurements.chosen < len(examined.data):
        chosen = many(examined.measurements.chosen, "clip", len(examined.data))
        left_out.append(
            Finding(
                "limited",
                "note",
                f"Read: {chosen}, evenly spaced",
                "Paths and labels of all were checked. What is wrong with the audio of the others, and copies among "
                "them, is not known.",
                "Leave out --limit to read all.",
                len(examined.data) - examined.measurements.chosen,
            )
        )
    if not request.labels:
        left_out.append(
            Finding(
                "no-vocabulary",
                "note",
                "No label file was named",
                "Labels that the vocabulary lacks, and classes without clips, are not known.",
                "Name it with --labels L.csv.",
            )
        )
    return left_out
