"""Tags audio of any length: ``psla_jax.load("runs/demo").tag("street.wav")``."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from flax import nnx

from psla_jax.audio.decode import AudioError
from psla_jax.audio.frontend import Frontend
from psla_jax.audio.reading import Reading
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel, Precision
from psla_jax.models.model_dir import load_model
from psla_jax.pretraining import zoo
from psla_jax.tagging.batcher import WindowBatcher
from psla_jax.tagging.calibration.loading import load_calibration
from psla_jax.tagging.calibration.model import Calibration
from psla_jax.tagging.defaults import DEFAULTS, Policy
from psla_jax.tagging.events import Rules
from psla_jax.tagging.inputs import Audio, AudioFile, Source, read_input
from psla_jax.tagging.members import TaggerError as TaggerError
from psla_jax.tagging.members import class_order, require_one_grid
from psla_jax.tagging.network import CompiledModel, default_batch_size
from psla_jax.tagging.plot import figure
from psla_jax.tagging.plot.spectrogram import log_mel_spectrogram
from psla_jax.tagging.prefetch import prefetch
from psla_jax.tagging.recording import FrameOutputs, RecordingAccumulator
from psla_jax.tagging.result import Embeddings, Tags, Timeline
from psla_jax.tagging.windows import Cutter, Window
from psla_jax.vocabulary.vocabulary import Vocabulary

READ_AHEAD = 8
"""Windows that are read in advance, in addition to one batch."""


@dataclass(frozen=True)
class Options:
    """Settings of a :class:`Tagger`."""

    policy: Policy = DEFAULTS.policy
    """Treatment of recordings shorter than a window: padded with silence as in training and evaluation (pad), repeated
    until the window is full (repeat), or padded and pooled over the output frames with sound only (mask)."""
    overlap: float = DEFAULTS.overlap
    """Overlap between consecutive windows, as a fraction of a window."""
    rules: Rules = field(default_factory=Rules)
    """Event detection parameters."""
    times: Literal["head", "windows"] = "head"
    """Source of event times: the head's score of every output frame, or the scores of windows."""
    channel: Channel | None = DEFAULTS.channel
    """Channel of a multi-channel recording: the mean of all, or the first; None for that of the (first) model's
    training."""
    batch_size: int = 0
    """Maximum number of windows per batch; 0 chooses by the device."""
    cache_programs: bool = False
    """Cache traced programs in the user's cache directory, as ``psla tag`` does: the next process starts half a second
    sooner. (Compiled programs are always cached, by JAX, unless ``JAX_ENABLE_COMPILATION_CACHE=false``.) Do not use it
    where code of this package is replaced at run time: its programs would be cached too."""

    def __post_init__(self) -> None:
        times = ("head", "windows")
        for name, choices in (("policy", get_args(Policy)), ("times", times), ("channel", (None, *get_args(Channel)))):
            if getattr(self, name) not in choices:
                raise TaggerError(f"{name} is {getattr(self, name)!r}: choose {' or '.join(filter(None, choices))}.")
        if self.batch_size < 0:
            raise TaggerError(f"batch_size is {self.batch_size}: use 1 or more, or 0 to choose by the device.")


@dataclass(frozen=True)
class Failure:
    """A recording that could not be tagged, and the error."""

    clip: str
    error: AudioError


def load_tagger(
    model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    trust: bool = False,
    calibrated: bool = True,
    precision: Precision = "highest",
    **options: Any,
) -> Tagger:
    """Loads a tagger from a model directory or run directory, or an ensemble from several.

    Args:
        model: one path or several, or names of released models (``psla models``), which are downloaded once; None for
            that of the environment variable PSLA_MODEL, or else the released AudioSet model. Classes are matched by mid
            and ordered as in the first model; each model uses its own frontend.
        trust: import the Python code that a custom model names.
        calibrated: use the calibration by ``psla calibrate`` of a single model, if there is one: results contain
            probabilities and decisions, and its thresholds apply to events unless `rules` have a threshold.
        precision: precision of the scores, see :mod:`psla_jax.models.precision`.
        options: fields of :class:`Options`, such as ``policy="repeat"``.

    Raises:
        CheckpointError: a directory contains no readable model; the message names it.
        CalibrationError: the calibration was fitted to another model.
        TaggerError: the models have different classes, or an option is invalid.
        DownloadError, PretrainingError: a released model cannot be downloaded or converted.
    """
    given = [model] if isinstance(model, str | os.PathLike) else list(model or ())
    paths = [os.fspath(path) for path in given]
    if paths or model is None:
        paths = zoo.resolve(paths, functools.partial(print, file=sys.stderr))
    try:
        settings = Options(**options)
    except TypeError as error:
        text = str(error).replace("Options.__init__() ", "")
        raise TaggerError(f"{text}: see psla_jax.tagging.tagger.Options.") from error
    models = [(path, load_model(path, trust=trust, precision=precision)) for path in paths]
    calibration, notes = load_calibration(models, settings.policy) if calibrated else (None, [])
    if settings.channel is None and len({model.card.channel for _, model in models}) > 1:
        notes.append(f"the models were trained on different channels, of which that of {paths[0]} is used (--channel)")
    return Tagger(models, settings, calibration=calibration, notes=notes)


class Tagger:
    """Tags recordings of any length. Thread-safe.

    Attributes:
        vocabulary: classes, in the order of all scores.
        options: see :class:`Options`.
        calibration: maps the model's scores to probabilities and decisions; None for uncalibrated models.
        notes: a sentence for each peculiarity of the calibration, and for models without the policy mask.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, Any]],
        options: Options | None = None,
        *,
        on_compile: Callable[[str], None] | None = None,
        calibration: Calibration | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if not models:
            raise TaggerError("there is no model to tag with: name at least one.")
        self.calibration, self.notes = calibration, tuple(notes)
        options = options or Options()
        threshold = DEFAULTS.threshold if calibration is None else calibration.event_thresholds
        self.options = replace(options, rules=options.rules.with_threshold(threshold))
        self.vocabulary: Vocabulary = models[0][1].card.vocabulary
        self._class_orders = [class_order(models[0], other) for other in models]
        self.on_compile = on_compile or (lambda text: None)
        policy, size = self.options.policy, self.options.batch_size or default_batch_size()
        self._models = [
            CompiledModel(model, policy, size, lambda text: self.on_compile(text), self.options.cache_programs)
            for _, model in models
        ]
        if self.options.policy == "mask":
            maskless = [path for (path, _), model in zip(models, self._models) if not model.takes_mask]
            self.notes += tuple(f"{path} has no head that takes a mask: --policy mask is as pad" for path in maskless)
        require_one_grid([(name, model.frontend) for name, model in models])
        self.cutters()  # Raises WindowError for an invalid overlap.

    def __repr__(self) -> str:
        names = ", ".join(compiled.model.card.model.name for compiled in self._models)
        return f"Tagger({names}; {len(self.vocabulary)} classes, windows of {self.window_seconds:.1f} s)"

    @property
    def model(self) -> nnx.Module:
        """Evaluation view of the (first) model: `(batch, frames, mels)` to `(batch, classes)`."""
        return self._models[0].model.network

    @property
    def frontend(self) -> Frontend:
        """Frontend of the (first) model, from waveforms to spectrograms."""
        return self._models[0].frontend

    @property
    def window_seconds(self) -> float:
        """Duration in seconds of the longest recording that is scored as a single window."""
        return max(model.frontend.num_samples / model.frontend.sample_rate for model in self._models)

    @property
    def grid(self) -> Grid:
        """Where the output frames are in a recording at the sample rate of the (first) model."""
        return Grid.of(self.frontend)

    @property
    def sample_rates(self) -> tuple[int, ...]:
        """Samples per second of the waveforms that the models need, each once, that of the first model first."""
        return tuple(dict.fromkeys(model.frontend.sample_rate for model in self._models))

    @property
    def top_hz(self) -> float:
        """Highest frequency of the features of the models."""
        return max(model.frontend.top_hz for model in self._models)

    @property
    def channel(self) -> Channel:
        """Channel of multi-channel recordings: the mean of all, or the first."""
        return self.options.channel or self._models[0].model.card.channel

    @property
    def events_from(self) -> str:
        """``head``; ``windows`` if requested, or if a model of the ensemble does not score output frames."""
        by_head = self.options.times == "head" and all(model.has_frames for model in self._models)
        return "head" if by_head else "windows"

    def cutters(self) -> list[Cutter]:
        """Returns a new window cutter for each model; raises WindowError if the overlap does not suit its windows."""
        windows = [(model.frontend.num_samples, Grid.of(model.frontend)) for model in self._models]
        return [Cutter(size, grid.hop_frames(size, self.options.overlap), grid) for size, grid in windows]

    def accumulator(
        self, name: str, frame_outputs: FrameOutputs, classes: Sequence[int] | None, rate: float = 0.0
    ) -> RecordingAccumulator:
        """Returns a new accumulator for the model outputs of the recording called `name`.

        `classes` are the indices of the classes to look for, or None for all; `rate` is the number of samples per
        second of the recording, or 0 if it is unknown.
        """
        indices = range(len(self.vocabulary)) if classes is None else sorted(set(classes))
        selected, window_frames = np.array(indices, np.int64), [model.num_frames for model in self._models]
        return RecordingAccumulator(
            name, self.vocabulary, self.options.rules, frame_outputs, selected, window_frames, self.events_from, rate,
            self.calibration, [model.model.card.exclusive for model in self._models], self.grid, self.top_hz,
        )  # fmt: skip

    def score_window(self, index: int, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        """Applies the model with that index to a window: scores ``(classes,)`` and frame scores ``(frames, classes)``.

        The frame scores are None for heads without them.
        """
        output, order = self._models[index].prepare([window.samples])(), self._class_orders[index]
        frames = None if output.frames is None else np.asarray(output.frames)[0][:, order]
        return np.asarray(output.scores)[0][order], frames

    def tag(self, audio: Audio, sample_rate: float | None = None, *, classes: Sequence[int] | None = None) -> Tags:
        """Returns the scores and events of a recording.

        Args:
            audio: a path, a :class:`psla_jax.audio.segments.Segment` of a file, an open binary file or its bytes; or
                samples: an array of any library or a list, alone or with their rate as ``(samples, rate)``,
                ``(rate, samples)`` or ``{"array", "sampling_rate"}``; see
                :func:`psla_jax.tagging.inputs.read_input`. Samples are `(samples,)`, or have a second axis of at most
                64 channels, before or after. Floats have full scale [-1, 1], integers that of their type.
            sample_rate: samples per second of samples that come without their rate.
            classes: indices of the classes to look for; None for all.

        Raises:
            AudioError: the file or the array contains no valid waveform.
            TaggerError: the sample rate is missing, or differs from that of the audio.
        """
        return self._analyse_one(audio, sample_rate, FrameOutputs(), classes).result()

    def timeline(self, audio: Audio, sample_rate: float | None = None) -> Timeline:
        """Returns the scores of every output frame (0.32 s); one hour of 527 classes takes 12 MB. See :meth:`tag`."""
        return self._analyse_one(audio, sample_rate, FrameOutputs(timeline=True), None).timeline()

    def embed(self, audio: Audio, sample_rate: float | None = None) -> Embeddings:
        """Returns the embeddings of a recording and of its output frames. Arguments as for :meth:`tag`.

        Raises:
            TaggerError: the tagger is an ensemble, whose models share no embedding space, or a custom model.
            AudioError: as for :meth:`tag`.
        """
        self.require_embeddings()
        return self._analyse_one(audio, sample_rate, FrameOutputs(embeddings=True), None).embeddings()

    def embed_all(self, paths: Iterable[Audio], *, sample_rate: float | None = None) -> Iterator[Embeddings | Failure]:
        """Yields the embeddings of several recordings in order, or a :class:`Failure`, as :meth:`tag_all` does.

        Raises TaggerError as :meth:`embed`.
        """
        self.require_embeddings()
        recordings = self.analyse(paths, FrameOutputs(embeddings=True), sample_rate=sample_rate)
        return (each if isinstance(each, Failure) else each.embeddings() for each in recordings)

    def plot(
        self,
        audio: Audio,
        path: str | os.PathLike[str],
        sample_rate: float | None = None,
        *,
        classes: Sequence[int] | None = None,
        top: int = DEFAULTS.top,
    ) -> Tags:
        """Tags a recording and plots its log-mel spectrogram, the scores of its top classes over time, and attention.

        Args:
            audio: as for :meth:`tag`, whose result is returned.
            path: path of the PNG file, which is replaced if it exists.
            sample_rate: as for :meth:`tag`.
            classes: as for :meth:`tag`.
            top: number of classes to plot, see :func:`psla_jax.tagging.plot.figure.draw`.

        Raises:
            PlotError: a plotting library is not installed, or the path does not end in .png.
            AudioError: as for :meth:`tag`.
        """
        figure.require_plotting(path)
        source = _with_rate(read_input(audio), sample_rate)  # A file object can be read only once.
        recording = self._analyse_one(source, None, FrameOutputs(plot=True), classes)
        tags = recording.result()
        blocks = source.blocks(self.channel, sample_rate=self.frontend.sample_rate)
        spectrogram = log_mel_spectrogram(blocks, self.frontend)
        figure.draw(path, tags, recording.heatmaps(), spectrogram, top=top)
        return tags

    def require_embeddings(self) -> None:
        """Raises TaggerError if the models provide no embeddings."""
        if len(self._models) > 1:
            raise TaggerError("the models of an ensemble do not share an embedding space: name one model.")
        if not self._models[0].num_features:
            raise TaggerError("a whole custom model provides no embeddings: give it a backbone, or name another model.")

    def tag_all(
        self,
        paths: Iterable[Audio],
        *,
        sample_rate: float | None = None,
        classes: Sequence[int] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Tags | Failure]:
        """Tags several recordings in order; windows of short ones are computed in common batches.

        Yields a result for each one, or a :class:`Failure`: an unreadable file does not stop the others. `paths` may
        also be other forms of audio, which are called ``recording 0`` and so on; `sample_rate` and `classes` are as for
        :meth:`tag`; `on_progress` is called with a path and the number of its seconds that are done.
        """
        for recording in self.analyse(paths, FrameOutputs(), classes, on_progress, sample_rate=sample_rate):
            yield recording if isinstance(recording, Failure) else recording.result()

    def analyse(
        self,
        paths: Iterable[Audio],
        frame_outputs: FrameOutputs,
        classes: Sequence[int] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        *,
        sample_rate: float | None = None,
    ) -> Iterator[RecordingAccumulator | Failure]:
        """Tags recordings as :meth:`tag_all` and yields their accumulators, which also hold the frame outputs."""
        recordings = (
            (self.accumulator(f"recording {number}", frame_outputs, classes), audio)
            for number, audio in enumerate(paths)
        )
        return self._run(recordings, sample_rate, on_progress)

    def _analyse_one(
        self, audio: Audio, sample_rate: float | None, frame_outputs: FrameOutputs, classes: Sequence[int] | None
    ) -> RecordingAccumulator:
        source = read_input(audio)
        (outcome,) = self._run([(self.accumulator(source.name, frame_outputs, classes), source)], sample_rate)
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def _run(
        self,
        recordings: Iterable[tuple[RecordingAccumulator, Audio]],
        sample_rate: float | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[RecordingAccumulator | Failure]:
        """Reads and computes recordings, and yields each one in order once the outputs of all its windows are added."""
        pending: deque[tuple[RecordingAccumulator, RecordingAccumulator | Failure]] = deque()
        on_progress = on_progress or (lambda clip, seconds: None)
        read_ahead = READ_AHEAD + self._models[0].batch_size * self._models[0].num_threads
        with WindowBatcher(self._models, self._class_orders, on_progress) as batcher:
            for recording, item in prefetch(self._windows(recordings, sample_rate), read_ahead):
                if isinstance(item, tuple):
                    batcher.add(recording, *item)
                else:
                    pending.append((recording, item))
                while pending and pending[0][0].complete:
                    yield pending.popleft()[1]
            batcher.flush()
        yield from (outcome for _, outcome in pending)

    def _windows(
        self, recordings: Iterable[tuple[RecordingAccumulator, Audio]], sample_rate: float | None
    ) -> Iterator[tuple[RecordingAccumulator, tuple[int, Window] | RecordingAccumulator | Failure]]:
        """Yields each recording with its windows and the index of their model, then with its outcome."""
        for recording, audio in recordings:
            cutters = self.cutters()
            outcome: RecordingAccumulator | Failure = recording
            try:
                source = _with_rate(read_input(audio, recording.clip), sample_rate)
                recording.clip, recording.rate = source.name, source.rate or 0
                for blocks in self._blocks(source, recording.reading):
                    recording.add_samples(blocks[recording.grid.rate])
                    yield from _expect(recording, (cutter.push(blocks[cutter.grid.rate]) for cutter in cutters))
                self._require_frame(recording)
                yield from _expect(recording, (cutter.finish() for cutter in cutters))
            except AudioError as error:
                outcome = Failure(recording.clip, error)
            recording.end()
            yield recording, outcome

    def _blocks(self, source: Source, reading: Reading) -> Iterator[dict[int, np.ndarray]]:
        """Yields the waveform in blocks by sample rate; audio is decoded once for each rate, side by side."""
        rates, empty = self.sample_rates, np.zeros(0, np.float32)
        readings = [reading, *(Reading() for _ in rates[1:])]
        streams = [source.blocks(self.channel, *each) for each in zip(readings, rates)]
        for blocks in itertools.zip_longest(*streams, fillvalue=empty):
            yield dict(zip(rates, blocks))

    def _require_frame(self, recording: RecordingAccumulator) -> None:
        """Raises AudioError if a recording is shorter than a spectrogram frame."""
        seconds = max(model.frontend.window_samples / model.frontend.sample_rate for model in self._models)
        if recording.duration < seconds:
            count, rate = recording.samples, recording.grid.rate
            reason = f"is too short ({count} samples at {rate / 1000:g} kHz): give {1000 * seconds:g} ms or more."
            raise AudioError(recording.clip, reason)


def _with_rate(source: Source, sample_rate: float | None) -> Source:
    """Returns the audio with its sample rate; raises TaggerError if that is missing, or differs from its own."""
    if isinstance(source, AudioFile):
        if sample_rate is not None:
            kind = "the file " if source.content is None else ""
            raise TaggerError(
                f"sample_rate is {sample_rate!r} for {kind}{source.name}: leave it out for files, and turn bytes of "
                "samples into an array with numpy.frombuffer."
            )
        return source
    if sample_rate is None and source.rate is None:
        raise TaggerError(f"the sample rate of {source.name} is not known: give sample_rate too.")
    if None not in (sample_rate, source.rate) and sample_rate != source.rate:
        raise TaggerError(
            f"sample_rate is {sample_rate!r}, and {source.name} comes with {source.rate!r}: leave sample_rate out."
        )
    return source if sample_rate is None else replace(source, rate=sample_rate)


def _expect(
    recording: RecordingAccumulator, windows: Iterable[Iterable[Window]]
) -> Iterator[tuple[RecordingAccumulator, tuple[int, Window]]]:
    """Yields the windows of each model with the index of the model, and lets the recording expect their outputs."""
    for index, of_model in enumerate(windows):
        for window in of_model:
            recording.expect_window(index)
            yield recording, (index, window)
