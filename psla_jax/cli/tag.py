"""The command ``psla tag``: classes and events of recordings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.config import Channel, ShareConfig
from psla_jax.runtime.terminal import printable
from psla_jax.tagging.defaults import DEFAULTS, Policy

if TYPE_CHECKING:
    import numpy as np

    from psla_jax.tagging.calibration.model import Calibration
    from psla_jax.tagging.recording import RecordingAccumulator
    from psla_jax.tagging.result import Tags
    from psla_jax.tagging.tag_files import Recording, ResultWriter
    from psla_jax.tagging.tagger import Failure, Tagger


FOLDER_SUFFIXES = {"audacity": ".txt", "embeddings": ".npz", "plot": ".png"}
"""Suffixes of the files that the options for output folders write for each recording."""


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """Options of psla tag and psla listen: models, classes, windows and events."""

    model: tuple[str, ...]
    """Model directory or run directory. Several form an ensemble."""
    threshold: float | None = None
    """Minimum score of classes and events. Default: thresholds of psla calibrate, or 0.2 for uncalibrated models."""
    raw: bool = False
    """Ignore the calibration of the model and report scores only."""
    classes: tuple[str, ...] = ()
    """Classes to look for, by name or mid. Default: all classes of the model."""
    not_classes: tuple[str, ...] = ()
    """Classes to exclude, by name or mid."""
    ontology: str = ""
    """AudioSet's ontology.json. With it, --classes and --not-classes include all descendants of a class."""
    policy: Policy = DEFAULTS.policy
    """Input shorter than a window: pad with silence, repeat it, or pad and mask the padding."""
    overlap: float = DEFAULTS.overlap
    """Overlap between consecutive windows, as a fraction of a window, up to 0.95."""
    release: float = DEFAULTS.release
    """An event lasts while scores stay at or above this fraction of the threshold."""
    smooth: int = DEFAULTS.smooth
    """Width of the running median over the scores, in output frames of 0.32 s, odd; 1 disables it."""
    min_gap: float = DEFAULTS.min_gap
    """Minimum gap between two events of a class, in seconds; events with a shorter gap are merged."""
    min_duration: float = DEFAULTS.min_duration
    """Minimum duration of an event, in seconds; shorter events are dropped."""
    channel: Channel = DEFAULTS.channel
    """Channel of multi-channel audio: the mean of all channels, or the first."""
    trust: bool = False
    """Import the Python code that a custom model names."""


@dataclass(frozen=True, kw_only=True)
class TagOptions(DetectionOptions):
    """Tag recordings of any length. Example: psla tag street.wav recordings/ --model runs/demo --csv tags.csv"""

    audio: Positional[tuple[str, ...]]
    """Audio files, or folders to search recursively. Any format that soundfile reads, at any sample rate."""
    top: int = DEFAULTS.top
    """Maximum number of classes to list per recording."""
    times: Literal["auto", "always", "never"] = "auto"
    """Which recordings get events with times: those longer than a window (auto), all, or none."""
    json: str = ""
    """Output file with one JSON object per line and recording; - for standard output."""
    csv: str = ""
    """Output file with the columns clip,onset,offset,class,mid,score; - for standard output."""
    rttm: str = ""
    """Output file in RTTM format; - for standard output."""
    audacity: str = ""
    """Output folder for an Audacity label track per recording."""
    embeddings: str = ""
    """Output folder for an .npz per recording with the embeddings of the recording and of its output frames."""
    plot: str = ""
    """Output folder for a .png per recording: log-mel spectrogram, the --top classes over time, and attention."""
    batch_size: int = 0
    """Maximum number of windows per batch; 0 chooses by the device."""
    overwrite: bool = False
    """Start over and replace existing outputs."""
    distributed: ShareConfig = field(default_factory=ShareConfig)
    """Several processes divide the recordings among them. Process I of N tags every N-th recording and writes
    tags.csv.partIofN instead of tags.csv. Only part 0 has the CSV header: cat tags.csv.part*ofN > tags.csv joins the
    parts. The same command resumes an interrupted process. Slurm and Open MPI set both numbers automatically."""

    def paths(self, *names: str) -> dict[str, str]:
        """Returns the paths of those of the named output options that are used."""
        return {name: path for name in names if (path := getattr(self, name))}


def tag(arguments: list[str]) -> int:
    """psla tag AUDIO... --model MODEL"""
    options: TagOptions = parse(TagOptions, arguments, "psla tag")
    _check_outputs(options)
    if options.top < 1:
        raise UsageError(f"--top is {options.top}: use at least 1.")

    from psla_jax.tagging.tag_files import find_audio

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # Writes file names that are not valid UTF-8 unchanged.
    if options.plot:
        from psla_jax.tagging.plot import figure

        figure.require_plotting()
    recordings = find_audio(options.audio)
    tagger, classes = build_tagger(options, options.batch_size)
    if options.embeddings:
        tagger.require_embeddings()
    return _TagCommand(options, tagger, classes).run(recordings)


def _check_outputs(options: TagOptions) -> None:
    """Raises UsageError if outputs conflict with each other."""
    files, folders = options.paths("json", "csv", "rttm"), options.paths(*FOLDER_SUFFIXES)
    to_stdout = [name for name, path in files.items() if path == "-"]
    if len(to_stdout) > 1:
        raise UsageError(f"--{' - and --'.join(to_stdout)} - would mix on standard output: write all but one to files.")
    for name, path in folders.items():
        if path == "-":
            raise UsageError(f"--{name} is -, but a folder cannot be written to standard output: name a folder.")
    seen: dict[str, str] = {}
    for name, path in {**files, **folders}.items():
        other = seen.setdefault(os.path.abspath(path), name)
        if other != name and path != "-" and not {name, other} <= set(folders):
            raise UsageError(f"--{other} and --{name} are both {path}: name a path for each.")


def build_tagger(options: DetectionOptions, batch_size: int = 0) -> tuple[Tagger, list[int] | None]:
    """Returns the tagger, and the indices of the classes to look for; None for all."""
    from psla_jax.tagging.class_filter import select_classes
    from psla_jax.tagging.events import Rules
    from psla_jax.tagging.tagger import load_tagger
    from psla_jax.vocabulary.ontology import Ontology

    rules = Rules(options.threshold, options.release, options.smooth, options.min_gap, options.min_duration)
    tagger = load_tagger(
        options.model, trust=options.trust, calibrated=not options.raw, policy=options.policy,
        overlap=options.overlap, rules=rules, channel=options.channel, batch_size=batch_size, cache_programs=True,
    )  # fmt: skip
    ontology = Ontology.read(options.ontology) if options.ontology else None
    return tagger, select_classes(tagger.vocabulary, options.classes, options.not_classes, ontology)


def _threshold(options: DetectionOptions, calibration: Calibration | None) -> float | np.ndarray:
    """Returns the minimum score of a class: one for all classes, or one per class ``(classes,)``."""
    if options.threshold is not None:
        return options.threshold
    return DEFAULTS.threshold if calibration is None else calibration.calibrators.thresholds


class _TagCommand:
    """One invocation of the command: its tagger, outputs and consoles."""

    def __init__(self, options: TagOptions, tagger: Tagger, classes: list[int] | None) -> None:
        from rich.console import Console

        from psla_jax.runtime import launcher
        from psla_jax.tagging import formats
        from psla_jax.tagging.share import Share

        self.options, self.tagger, self.classes = options, tagger, classes
        calibration = tagger.calibration
        self.output_options = formats.OutputOptions(options.top, _threshold(options, calibration), options.times)
        self.formatters = {"json": formats.json_line, "csv": formats.csv_rows, "rttm": formats.rttm_lines}
        self.paths = options.paths(*self.formatters)
        self.files = [path for path in self.paths.values() if path != "-"]
        columns = formats.COLUMNS if calibration is None else formats.COLUMNS + formats.CALIBRATED_COLUMNS
        self.csv_header = ",".join(columns) + "\n"
        self.share = Share(*launcher.share(options.distributed))
        self.screen = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def run(self, recordings: list[Recording]) -> int:
        """Tags all recordings of this process that are not done yet; returns 1 if any failed, otherwise 0."""
        for note in self.tagger.notes:
            self._print_error(note)
        recordings = self.share.select(recordings)
        writer = self._open_writer(recordings)
        pending = [recording for recording in recordings if recording.path not in writer.done]
        if len(pending) < len(recordings):
            self._print_error(f"{len(recordings) - len(pending)} of {len(recordings)} recordings are done: resuming")
        if self.options.csv == "-" and self.share.index == 0:
            sys.stdout.write(self.csv_header)
        with contextlib.closing(writer), contextlib.closing(self._outcomes(pending)) as outcomes:
            for outcome, recording in zip(outcomes, pending):
                self._write(recording, outcome, writer)
        writer.finish()
        if self.share.count > 1 and self.files:
            parts = ", ".join(map(self.share.part_path, self.files))
            commands = "; ".join(map(self.share.cat_command, self.files))
            self._print_error(f"wrote {parts}; after all {self.share.count} processes have finished: {commands}")
        if writer.failed:
            self._print_error(f"{len(writer.failed)} of {len(recordings)} recordings could not be tagged")
        return 1 if writer.failed else 0

    def _print_error(self, text: str) -> None:
        self.errors.print(printable(text), markup=False)

    def _open_writer(self, recordings: list[Recording]) -> ResultWriter:
        from psla_jax.tagging.tag_files import ResultWriter

        options = self.options
        files = {path: self.csv_header if path == options.csv else "" for path in self.files}
        folders = list(options.paths(*FOLDER_SUFFIXES).values())
        may_change = ("overwrite", "batch_size", "distributed")
        settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in may_change}
        settings["calibration"] = "" if self.tagger.calibration is None else self.tagger.calibration.sha256
        own = [path for recording in recordings for path in self._own_files(recording).values()]
        return ResultWriter(files, folders, settings, overwrite=options.overwrite, share=self.share, own=own)

    def _outcomes(self, recordings: list[Recording]) -> Generator[RecordingAccumulator | Failure]:
        """Tags the recordings in order; shows progress over the recordings, or over the seconds of a single one."""
        from psla_jax.audio.decode import header
        from psla_jax.runtime.logging import Logger
        from psla_jax.tagging.recording import FrameOutputs
        from psla_jax.tagging.result import clock

        def on_progress(clip: str, seconds: float) -> None:
            if single:
                bar.reach(math.floor(seconds))
            else:
                bar.describe(f"{clip} {clock(seconds)}")

        single = len(recordings) == 1
        frame_outputs = FrameOutputs(embeddings=bool(self.options.embeddings), plot=bool(self.options.plot))
        paths = (recording.path for recording in recordings)
        total = math.ceil(header(recordings[0].path)[0]) if single else len(recordings)
        with Logger().progress("tagging", total) as bar:
            self.tagger.on_compile = bar.describe
            for outcome in self.tagger.analyse(paths, frame_outputs, self.classes, on_progress):
                yield outcome
                if not single:
                    bar.advance()

    def _write(self, recording: Recording, outcome: RecordingAccumulator | Failure, writer: ResultWriter) -> None:
        """Writes the results of a recording to all outputs, or its error to standard error and the JSON output."""
        from psla_jax.tagging import formats
        from psla_jax.tagging.tagger import Failure

        if isinstance(outcome, Failure):
            self._print_error(f"psla: {outcome.error}")
            line = formats.failure_line(outcome.clip, outcome.error)
            texts = {path: line for name, path in self.paths.items() if name == "json"}
        else:
            tags = outcome.result()
            self._write_own_files(recording, outcome, tags)
            texts = {path: self.formatters[name](tags, self.output_options) for name, path in self.paths.items()}
            if not texts and not self._own_files(recording):
                formats.show(self.screen, tags, self.output_options)
        to_stdout = texts.pop("-", "")
        writer.append(recording.path, texts, failed=isinstance(outcome, Failure))
        sys.stdout.write(to_stdout)
        sys.stdout.flush()

    def _own_files(self, recording: Recording) -> dict[str, Path]:
        """Returns the output files of a single recording, by option."""
        folders = self.options.paths(*FOLDER_SUFFIXES)
        return {k: Path(folder) / f"{recording.output_name}{FOLDER_SUFFIXES[k]}" for k, folder in folders.items()}

    def _write_own_files(self, recording: Recording, accumulator: RecordingAccumulator, tags: Tags) -> None:
        """Writes the label track, the embeddings and the plot of a recording."""
        from psla_jax.audio import decode
        from psla_jax.runtime.files import atomic_text
        from psla_jax.tagging import formats
        from psla_jax.tagging.plot import figure
        from psla_jax.tagging.plot.spectrogram import log_mel_spectrogram

        paths = self._own_files(recording)
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if "audacity" in paths:
            with atomic_text(paths["audacity"]) as file:
                file.write(formats.audacity_labels(tags, self.output_options))
        if "embeddings" in paths:
            accumulator.embeddings().save(paths["embeddings"])
        if "plot" in paths:
            blocks = decode.blocks(recording.path, channel=self.options.channel)
            figure.draw(paths["plot"], tags, accumulator.heatmaps(), log_mel_spectrogram(blocks), top=self.options.top)
