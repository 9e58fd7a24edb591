"""Findings of ``psla check``, the measured data sets that checks examine, and the order of the findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from psla_jax.config import FrontendConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.validate.measure import Measurements
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One defect or notable property of a data set."""

    kind: str
    """Identifier for programs, such as ``unreadable``."""
    severity: Severity
    """``error``: must be repaired before training; ``warning``: costs quality or time; ``note``: for information."""
    title: str
    """The finding and its frequency."""
    meaning: str
    """Consequence for training, in one or two sentences."""
    remedy: str
    count: int = 0
    """Number of affected clips, files or classes."""
    items: Sequence[str] = ()
    """The affected clips, files or classes, one line each."""


@dataclass(frozen=True)
class LogMelStatistics:
    """Mean and standard deviation of log-mel values, without padding."""

    mean: float
    std: float
    num_clips: int


@dataclass(frozen=True, eq=False)
class MeasuredDataset:
    """A data set with the measurements of its audio: input of the checks.

    Checks of labels cover all clips, checks of audio those that were read.
    """

    datafile: Datafile
    measurements: Measurements
    mids: tuple[str, ...]
    """Mid of every class index of `datafile`; the classes of the vocabulary come first."""
    vocabulary: Vocabulary | None = None
    ontology: Ontology | None = None
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    loss: str = "bce"
    log_mel: LogMelStatistics | None = None
    against: Mapping[str, MeasuredDataset] = field(default_factory=dict)
    """The data sets that must have no clip in common with this one, by the names of their datafiles."""

    @property
    def table(self) -> np.ndarray:
        """One row per clip that was read, see :class:`psla_jax.data.validate.measure.ClipMeasurement`."""
        return self.measurements.table

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each row of `table` in seconds, float64 ``(rows,)``."""
        return self.table["samples"] / np.maximum(self.table["rate"], 1)

    @property
    def num_known_classes(self) -> int:
        """Number of classes of the vocabulary; without a vocabulary, of the datafile."""
        return len(self.mids) if self.vocabulary is None else len(self.vocabulary)

    def class_name(self, index: int) -> str:
        """Returns the name of a class, or its mid if it is not in the vocabulary."""
        return self.vocabulary.names[index] if self.vocabulary and index < self.num_known_classes else self.mids[index]

    def clip_ids(self, clips: Iterable[int] | np.ndarray) -> list[str]:
        """Returns the ids of clips, given by their indices in the datafile."""
        return [self.datafile.clip_id(int(clip)) for clip in clips]

    def finding_for_rows(
        self,
        rows: np.ndarray,
        kind: str,
        severity: Severity,
        title: str,
        meaning: str,
        remedy: str,
        detail: Callable[[int], str] = lambda row: "",
    ) -> Iterator[Finding]:
        """Yields a finding about the clips in `rows` of the table, unless there are none; `detail` describes a row."""
        ids = self.clip_ids(self.measurements.clips[rows])
        items = [f"{clip}  {detail(int(row))}".rstrip() for clip, row in zip(ids, rows)]
        return finding_for_items(items, kind, severity, title, meaning, remedy, "clip", len(self.table))

    def finding_for_clips(
        self, clips: Sequence[int] | np.ndarray, kind: str, severity: Severity, title: str, meaning: str, remedy: str
    ) -> Iterator[Finding]:
        """Yields a finding about clips, given by their indices in the datafile, unless there are none."""
        return finding_for_items(
            self.clip_ids(clips), kind, severity, title, meaning, remedy, "clip", len(self.datafile)
        )


def finding_for_items(
    items: list[str], kind: str, severity: Severity, title: str, meaning: str, remedy: str, noun: str, of: int | None
) -> Iterator[Finding]:
    """Yields a finding with the number of items, of a total of `of`, in its title, unless there are none."""
    if items:
        title = f"{title}: {format_count(len(items), noun, of)}"
        yield Finding(kind, severity, title, meaning, remedy, len(items), items)


Check = Callable[[MeasuredDataset], Iterator[Finding]]


def run_checks(checks: Sequence[Check], dataset: MeasuredDataset) -> list[Finding]:
    """Returns all findings: errors, then warnings, then notes, each in the order of the checks."""
    findings = [finding for check in checks for finding in check(dataset)]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def format_count(count: int, noun: str, of: int | None = None) -> str:
    """Formats a count with its noun, such as ``3 clips`` or ``3 of 1,200 clips``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}" if of is None else f"{count:,} of {of:,} {plural}"
