"""What there is to say of a data set: findings, what they are drawn from, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from psla_jax.config import FrontendConfig, Loss
from psla_jax.data.datafile import Datafile
from psla_jax.data.measure import Measurements
from psla_jax.ontology import Ontology, Vocabulary

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing about a data set that its owner should know."""

    kind: str
    """For programs, as ``unreadable``."""
    severity: Severity
    """``error``: must be repaired; ``warning``: costs quality or time; ``note``: good to know."""
    title: str
    """What was found, and how often."""
    means: str
    """Why it matters, in a sentence or two."""
    remedy: str
    """What to do."""
    count: int = 0
    """How many clips, files or classes it is about."""
    places: Sequence[str] = ()
    """Each of them in a line."""


@dataclass(frozen=True)
class LogMel:
    """Mean and standard deviation of log-mel values, padding left out."""

    mean: float
    std: float
    clips: int
    """How many clips they were measured on."""


@dataclass(frozen=True, eq=False)
class Examined:
    """A set and what was measured of it: labels are checked on all its clips, audio on those that were read."""

    data: Datafile
    measurements: Measurements
    mids: tuple[str, ...]
    """The classes that the indices of ``data`` mean; those of the vocabulary come first."""
    vocabulary: Vocabulary | None = None
    ontology: Ontology | None = None
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    loss: Loss = "bce"
    log_mel: LogMel | None = None
    against: Mapping[str, Examined] = field(default_factory=dict)
    """The sets it should have no clip in common with, by the names of their datafiles."""

    @property
    def table(self) -> np.ndarray:
        """A row for each clip that was read, see :class:`psla_jax.data.measure.Measured`."""
        return self.measurements.table

    @property
    def known(self) -> int:
        """How many of the classes belong to the vocabulary."""
        return len(self.mids) if self.vocabulary is None else len(self.vocabulary)

    def class_name(self, index: int) -> str:
        """For people: the name of a class, or its mid if it has none."""
        return self.vocabulary.names[index] if self.vocabulary and index < self.known else self.mids[index]

    def ids(self, clips: Iterable[int] | np.ndarray) -> list[str]:
        """What clips of the datafile are known by."""
        return [self.data.clip_id(int(clip)) for clip in clips]

    def of_rows(
        self,
        rows: np.ndarray,
        kind: str,
        severity: Severity,
        title: str,
        means: str,
        remedy: str,
        detail: Callable[[int], str] = lambda row: "",
    ) -> Iterator[Finding]:
        """A finding about the clips in some rows of the table, each with its detail; none about no row."""
        if len(rows):
            names = self.ids(self.measurements.clips[rows])
            places = [f"{name}  {detail(int(row))}".rstrip() for name, row in zip(names, rows)]
            title = f"{title}: {many(len(rows), 'clip', len(self.table))}"
            yield Finding(kind, severity, title, means, remedy, len(rows), places)

    def of_clips(
        self, clips: Sequence[int] | np.ndarray, kind: str, severity: Severity, title: str, means: str, remedy: str
    ) -> Iterator[Finding]:
        """A finding about some clips of the datafile; none about no clip."""
        if len(clips):
            title = f"{title}: {many(len(clips), 'clip', len(self.data))}"
            yield Finding(kind, severity, title, means, remedy, len(clips), self.ids(clips))


Check = Callable[[Examined], Iterator[Finding]]


def in_order_of_harm(checks: Sequence[Check], examined: Examined) -> list[Finding]:
    """All findings: errors first, then warnings, then notes; alike ones in the order of the checks."""
    found = [finding for check in checks for finding in check(examined)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def many(count: int, noun: str, of: int | None = None) -> str:
    """A number of things, as ``3 of 1,200 clips``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}" if of is None else f"{count:,} of {of:,} {plural}"
