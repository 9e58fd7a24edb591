"""Validation of a data set: measurements, checks and report of ``psla check``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from psla_jax.config import Channel, FrontendConfig
from psla_jax.data.datafile import read_open_vocabulary
from psla_jax.data.datasets import DataError, data_notes, locate
from psla_jax.data.validate import audio, duplicates, labels
from psla_jax.data.validate.feature_stats import log_mel_statistics
from psla_jax.data.validate.findings import Check, Finding, LogMelStatistics, MeasuredDataset, format_count, run_checks
from psla_jax.data.validate.measure import evenly_spaced, measure_clips
from psla_jax.runtime.logging import Logger
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

CHECKS: tuple[Check, ...] = (
    audio.check_readability, labels.check_label_counts, labels.check_unknown_labels, audio.check_scale,
    duplicates.check_overlap, duplicates.check_repeated_files, audio.check_silence, audio.check_bandwidth,
    duplicates.check_duplicates, labels.check_absent_classes, labels.check_hierarchy, audio.check_log_mel,
    audio.check_completeness, audio.check_lengths, audio.check_clipping, audio.check_rates,
)  # fmt: skip
"""All checks, in the order of their findings within a severity."""
MAX_LOG_MEL_CLIPS = 1000
"""Number of clips that the log-mel statistics are measured on; more hardly change the second decimal."""


@dataclass(frozen=True)
class Request:
    """The data set to validate and the references to validate it against."""

    data: str
    """Path of the datafile."""
    labels: str = ""
    """Path of the label CSV; empty for the classes of the datafile."""
    ontology: str = ""
    """Path of AudioSet's ``ontology.json``; empty to skip the checks of parents and children."""
    against: tuple[str, ...] = ()
    """Paths of datafiles that must have no clip in common with this one."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    loss: str = "bce"
    channel: Channel = "mean"
    limit: int = 0
    """Number of clips to read of each data set, evenly spaced; 0 for all."""
    workers: int = 0
    """Number of threads; 0 for the number of cores plus 4, at most 32."""


@dataclass(frozen=True)
class Report:
    """A measured data set and its findings."""

    dataset: MeasuredDataset
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)


def validate_dataset(request: Request, logger: Logger, log: Callable[[str], None]) -> Report:
    """Checks the labels and the audio of a data set, and its overlap with other data sets.

    `log` receives a line when the embedded demo set is synthesised, and if relative paths are in another folder.

    Raises:
        DataError: a setting is negative.
        DatafileError, VocabularyError, OntologyError: a file cannot be read.
    """
    if request.limit < 0 or request.workers < 0:
        raise DataError(f"--limit is {request.limit} and --workers is {request.workers}: use 0 or more.")
    vocabulary = Vocabulary.read(locate(request.labels, log)) if request.labels else None
    ontology = Ontology.read(request.ontology) if request.ontology else None
    path, *others = (locate(path, log) for path in (request.data, *request.against))
    against = {
        os.path.basename(other) if len(others) == 1 else other: _measure(other, request, logger, vocabulary)
        for other in others
    }
    dataset = _measure(path, request, logger, vocabulary)
    for measured in (dataset, *against.values()):
        for note in data_notes(measured.datafile, held_out=False):
            log(note)
    log_mel = _log_mel(dataset, request, logger)
    dataset = replace(
        dataset, ontology=ontology, frontend=request.frontend, loss=request.loss, log_mel=log_mel, against=against
    )
    return Report(dataset, (*run_checks(CHECKS, dataset), *_omitted_checks(request, dataset)))


def _measure(path: str, request: Request, logger: Logger, vocabulary: Vocabulary | None) -> MeasuredDataset:
    data, mids = read_open_vocabulary(path, vocabulary.mids if vocabulary else ())
    clips = evenly_spaced(len(data), request.limit)
    with logger.progress(f"Reading {os.path.basename(path)}", len(data) + len(clips)) as bar:
        measurements = measure_clips(
            data, clips, channel=request.channel, workers=request.workers, advance=lambda n: bar.advance(count=n)
        )
    return MeasuredDataset(data, measurements, mids, vocabulary)


def _log_mel(dataset: MeasuredDataset, request: Request, logger: Logger) -> LogMelStatistics | None:
    clips = dataset.measurements.clips
    clips = clips[evenly_spaced(len(clips), MAX_LOG_MEL_CLIPS)]
    with logger.progress("Measuring the log-mel", len(clips)) as bar:
        return log_mel_statistics(
            dataset.datafile,
            clips,
            request.frontend,
            channel=request.channel,
            workers=request.workers,
            advance=lambda n: bar.advance(count=n),
        )


def _omitted_checks(request: Request, dataset: MeasuredDataset) -> Iterator[Finding]:
    """Yields notes on checks that the request leaves out."""
    num_requested, num_clips = dataset.measurements.num_requested, len(dataset.datafile)
    if num_requested < num_clips:
        yield Finding(
            "limited",
            "note",
            f"Only {format_count(num_requested, 'clip', num_clips)} were read, evenly spaced",
            "Paths and labels of all clips were checked. Defects in the audio of the other clips, and copies among "
            "them, were not detected.",
            "Omit --limit to read all clips.",
            num_clips - num_requested,
        )
    if not request.labels:
        yield Finding(
            "no-vocabulary",
            "note",
            "No label file",
            "Labels that are not in the vocabulary, and classes without clips, were not detected.",
            "Give the label file with --labels L.csv.",
        )
