"""The command ``psla tag``: classes and events of recordings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.config import Channel, Precision, ShareConfig
from psla_jax.runtime import launcher
from psla_jax.runtime.files import exists, same_file
from psla_jax.runtime.streams import STANDARD, is_output_stream, is_standard_output
from psla_jax.runtime.terminal import one_line
from psla_jax.tagging.defaults import DEFAULTS, Policy

if TYPE_CHECKING:
    import numpy as np

    from psla_jax.tagging.calibration.model import Calibration
    from psla_jax.tagging.recording import RecordingAccumulator
    from psla_jax.tagging.result import Tags
    from psla_jax.tagging.result_writer import ResultWriter
    from psla_jax.tagging.share import Share
    from psla_jax.tagging.tag_files import Recording
    from psla_jax.tagging.tagger import Failure, Tagger


FOLDERS = ("audacity", "embeddings", "plot")
"""Options for output folders with a file for each recording."""
MAX_NOTED = 20
"""Number of recordings whose notes are printed; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """Options of psla tag and psla listen: models, classes, windows and events."""

    model: tuple[str, ...] = ()
    """Model directory, run directory, or name of a released model (psla models), which is downloaded once. Several form
    an ensemble. Default: PSLA_MODEL of the environment, or else the released AudioSet model."""
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
    channel: Channel | None = DEFAULTS.channel
    """Channel of multi-channel audio: the mean of all channels, or the first. Default: that of the training."""
    precision: Precision = "highest"
    """Precision of products: highest (float32), tf32 (TensorFloat-32 on GPUs), or bf16 (a bfloat16 backbone)."""
    trust: bool = False
    """Import the Python code that a custom model names."""


@dataclass(frozen=True, kw_only=True)
class TagOptions(DetectionOptions):
    """Tag recordings of any length. Example: psla tag street.wav recordings/ --model runs/demo --csv tags.csv"""

    audio: Positional[tuple[str, ...]]
    """Audio files, folders to search recursively, pipes, or - for standard input. Any format that libsndfile or FFmpeg
    reads."""
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
        """Returns the paths of those of the named output options that are used; ``-`` for standard output."""
        paths = {name: path for name in names if (path := getattr(self, name))}
        return {name: STANDARD if is_standard_output(path) else path for name, path in paths.items()}


def tag(arguments: list[str]) -> int:
    """psla tag AUDIO... --model MODEL"""
    options: TagOptions = parse(TagOptions, arguments, "psla tag")
    _check_outputs(options)
    if options.top < 1:
        raise UsageError(f"--top is {options.top}: use at least 1.")

    from psla_jax.pretraining import zoo
    from psla_jax.tagging.share import Share
    from psla_jax.tagging.tag_files import find_audio, readable

    if options.plot:
        from psla_jax.tagging.plot import figure

        figure.require_plotting()
    share = Share(*launcher.share(options.distributed))
    recordings = share.select(find_audio(options.audio, on_note=_print_error))
    _check_inputs(options, recordings, share)
    options = dataclasses.replace(options, model=tuple(zoo.resolve(options.model, _print_error)))
    launcher.use_own_accelerator(options.distributed)
    with contextlib.ExitStack() as pipes:
        recordings = [pipes.enter_context(readable(recording)) for recording in recordings]
        tagger, classes = build_tagger(options, options.batch_size)
        if options.embeddings:
            tagger.require_embeddings()
        return _TagCommand(options, tagger, classes, share).run(recordings)


def _print_error(text: str) -> None:
    print(one_line(text), file=sys.stderr)


def _check_outputs(options: TagOptions) -> None:
    """Raises UsageError if outputs conflict with each other."""
    files, folders = options.paths("json", "csv", "rttm"), options.paths(*FOLDERS)
    to_stdout = [name for name, path in files.items() if path == STANDARD]
    if len(to_stdout) > 1:
        raise UsageError(f"--{' - and --'.join(to_stdout)} - would mix on standard output: write all but one to files.")
    for name, path in folders.items():
        if path == STANDARD:
            raise UsageError(f"--{name} is -, but a folder cannot be written to standard output: name a folder.")
    seen: dict[str, str] = {}
    for name, path in {**files, **folders}.items():
        other = seen.setdefault(os.path.abspath(path), name)
        if other != name and path != STANDARD and not {name, other} <= set(folders):
            raise UsageError(f"--{other} and --{name} are both {path}: name a path for each.")


def _check_inputs(options: TagOptions, recordings: Sequence[Recording], share: Share) -> None:
    """Raises UsageError if an output would replace a file that is read."""
    for name, path in options.paths("json", "csv", "rttm").items():
        part = share.part_path(path)
        if not exists(part):
            continue
        for source in [*(recording.path for recording in recordings), options.ontology]:
            if same_file(part, source):
                raise UsageError(f"--{name} {path} would replace an input of the command: name another file.")


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
        precision=options.precision,
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

    def __init__(self, options: TagOptions, tagger: Tagger, classes: list[int] | None, share: Share) -> None:
        from rich.console import Console

        from psla_jax.tagging import formats
        from psla_jax.tagging.own_files import OwnFiles

        self.options, self.tagger, self.classes, self.share = options, tagger, classes, share
        calibration = tagger.calibration
        self.output_options = formats.OutputOptions(options.top, _threshold(options, calibration), options.times)
        self.formatters = {"json": formats.json_line, "csv": formats.csv_rows, "rttm": formats.rttm_lines}
        self.paths = options.paths(*self.formatters)
        self.files = [path for path in self.paths.values() if path != STANDARD and not is_output_stream(path)]
        self.own_files = OwnFiles(options.paths(*FOLDERS), self.output_options, tagger.channel, tagger.frontend)
        columns = formats.COLUMNS if calibration is None else formats.COLUMNS + formats.CALIBRATED_COLUMNS
        self.csv_header = ",".join(columns) + "\n"
        self.num_noted = 0
        self.screen = Console(emoji=False, highlight=False)
        self.unwritten = set[str]()

    def run(self, recordings: list[Recording]) -> int:
        """Tags the recordings that are not done yet; returns 1 if any failed or lacks an output, otherwise 0."""
        for note in self.tagger.notes:
            _print_error(note)
        writer = self._open_writer(recordings)
        pending = [recording for recording in recordings if not writer.is_complete(recording.path)]
        if len(pending) < len(recordings):
            _print_error(f"{len(recordings) - len(pending)} of {len(recordings)} recordings are done: resuming")
        with contextlib.closing(writer), contextlib.closing(self._outcomes(pending)) as outcomes:
            for outcome, recording in zip(outcomes, pending):
                self._write(recording, outcome, writer)
            if not self.unwritten:
                writer.finish()
        self._report(len(recordings), writer)
        return 1 if writer.failed or self.unwritten else 0

    def _report(self, total: int, writer: ResultWriter) -> None:
        """Prints which outputs were written, and how many recordings are missing in them."""
        for path in writer.closed:
            name = "standard output" if path == STANDARD else path
            _print_error(f"{name} was closed by the program that reads it: only the other outputs are complete")
        folders = [os.path.join(folder, "") for folder in self.own_files.folders.values()]
        if outputs := [*map(self.share.part_path, self.files), *folders]:
            after = ""
            if self.share.count > 1 and self.files:
                commands = "; ".join(map(self.share.cat_command, self.files))
                after = f"; after all {self.share.count} processes have finished: {commands}"
            count = total - len(writer.failed) - len(self.unwritten)
            _print_error(f"wrote the results of {count} of {total} recordings to {', '.join(outputs)}{after}")
        if self.num_noted > MAX_NOTED:
            _print_error(f"{self.num_noted - MAX_NOTED} more recordings have notes, which --json lists")
        if writer.failed:
            _print_error(f"{len(writer.failed)} of {total} recordings could not be tagged")
        if self.unwritten:
            _print_error(
                f"{len(self.unwritten)} of {total} recordings lack an output: run the same command again to write it"
            )

    def _open_writer(self, recordings: list[Recording]) -> ResultWriter:
        from psla_jax.tagging.result_writer import ResultWriter

        options = self.options
        files = {path: self.csv_header if name == "csv" else "" for name, path in self.paths.items()}
        own = {recording.path: list(self.own_files.paths(recording).values()) for recording in recordings}
        settings = self._settings(recordings)
        folders = list(self.own_files.folders.values())
        return ResultWriter(files, folders, settings, overwrite=options.overwrite, share=self.share, own=own)

    def _settings(self, recordings: list[Recording]) -> dict[str, Any]:
        """Returns everything that the results depend on: a run with other settings cannot be resumed."""
        from psla_jax.models.model_dir import find_model, fingerprint, read_card
        from psla_jax.runtime.download import sha256_of

        may_change = ("overwrite", "batch_size", "distributed")
        settings = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in may_change}
        settings["calibration"] = "" if self.tagger.calibration is None else self.tagger.calibration.sha256
        models = [find_model(Path(path)) for path in self.options.model]
        settings["fingerprints"] = [fingerprint(model, read_card(model)) for model in models]
        settings["pipes"] = {r.path: sha256_of(Path(r.content)) for r in recordings if r.content}
        return settings

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
                bar.describe(f"{names.get(clip, clip)} {clock(seconds)}")

        names = {recording.file: recording.path for recording in recordings}
        single = len(recordings) == 1
        frame_outputs = FrameOutputs(embeddings=bool(self.options.embeddings), plot=bool(self.options.plot))
        paths = (recording.file for recording in recordings)
        total = math.ceil(header(recordings[0].file)[0]) if single else len(recordings)
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

        outcome = _with_name(outcome, recording)
        failed = isinstance(outcome, Failure)
        if isinstance(outcome, Failure):
            _print_error(f"psla: {outcome.error}")
            line = formats.failure_line(outcome.clip, outcome.error)
            texts = {path: line for name, path in self.paths.items() if name == "json"}
        else:
            tags = outcome.result()
            self._print_notes(tags)
            for problem in self.own_files.write(recording, outcome, tags):
                _print_error(f"psla: {problem}")
                self.unwritten.add(recording.path)
            texts = {path: self.formatters[name](tags, self.output_options) for name, path in self.paths.items()}
            if not texts and not self.own_files.folders:
                formats.show(self.screen, tags, self.output_options)
        writer.append(recording.path, texts, failed=failed)

    def _print_notes(self, tags: Tags) -> None:
        """Prints the notes on a recording for outputs without them, unless many recordings have notes."""
        if tags.notes and self.paths and "json" not in self.paths:
            self.num_noted += 1
            for note in tags.notes if self.num_noted <= MAX_NOTED else ():
                _print_error(note)


def _with_name(outcome: RecordingAccumulator | Failure, recording: Recording) -> RecordingAccumulator | Failure:
    """Returns the outcome of a pipe with its name in place of that of the file with its content; others as they are."""
    from psla_jax.audio.decode import AudioError
    from psla_jax.tagging.tagger import Failure

    if not recording.content:
        return outcome
    if isinstance(outcome, Failure):
        reason = outcome.error.reason
        problem = reason.rpartition(": ")[0] or reason  # Without a remedy such as to download the file again.
        error = AudioError(recording.path, f"{problem}: check the program that writes to this pipe.")
        return Failure(recording.path, error)
    outcome.clip = recording.path
    return outcome
