"""``tagger = psla_jax.load(MODEL)``; ``tagger.tag("street.wav")``: audio of any length to tags, events, embeddings."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flax import nnx

from psla_jax import audio
from psla_jax.audio import SAMPLE_RATE, AudioError
from psla_jax.calibration import CALIBRATION, Calibration
from psla_jax.calibration import read as read_calibration
from psla_jax.checkpoints import Model, find_model, fingerprint, load_model
from psla_jax.config import Channel
from psla_jax.frontend import FRAME_LENGTH, Frontend
from psla_jax.ontology import Vocabulary
from psla_jax.tagging import picture
from psla_jax.tagging.ahead import ahead
from psla_jax.tagging.batches import Batches
from psla_jax.tagging.clip import ClipState, Wanted
from psla_jax.tagging.events import Rules
from psla_jax.tagging.programs import Network, Policy, batch_size_for_device
from psla_jax.tagging.result import SHOWN, Embeddings, Tags, Timeline, select
from psla_jax.tagging.spectrum import spectrum
from psla_jax.tagging.windows import Cutter, Window, hop_of

POLICY: Policy = "pad"
"""What becomes of a clip that is shorter than a window, unless somebody says otherwise."""
READ_AHEAD = 8
"""Windows that are read before the device asks for them, beyond a batch."""
Audio = str | os.PathLike[str] | np.ndarray


class TaggerError(ValueError):
    """Models or settings that cannot be used together; the message names them."""


@dataclass(frozen=True)
class Options:
    """How recordings are cut and what is made of their scores."""

    policy: Policy = POLICY
    """A clip that is shorter than a window is padded with silence (as in training and evaluation), repeated until the
    window is full, or padded and pooled over its own steps alone (mask)."""
    overlap: float = 0.5
    """Of windows of longer recordings, as a fraction of a window."""
    rules: Rules = field(default_factory=Rules)
    """What counts as an event."""
    times: Literal["head", "windows"] = "head"
    """Where times come from: the head's score of every step, or the scores of windows alone."""
    channel: Channel = "mean"
    """Which channel of a stereo recording: the mean of all, or the first."""
    batch_size: int = 0
    """Windows computed together; 0 for what suits the device."""

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise TaggerError(f"policy is {self.policy!r}: choose {', '.join(get_args(Policy))}.")
        if self.times not in ("head", "windows"):
            raise TaggerError(f"times is {self.times!r}: choose head or windows.")
        if self.channel not in get_args(Channel):
            raise TaggerError(f"channel is {self.channel!r}: choose {', '.join(get_args(Channel))}.")
        if self.batch_size < 0:
            raise TaggerError(f"batch_size is {self.batch_size}: use 1 or more, or 0 for what suits the device.")


@dataclass(frozen=True)
class Failure:
    """A recording that could not be tagged, and why."""

    clip: str
    error: AudioError


def load(
    model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    trust: bool = False,
    calibrated: bool = True,
    **options: Any,
) -> Tagger:
    """A tagger from a model directory or run directory, or an ensemble from several.

    Args:
        model: one path or several. Classes are matched by mid, in the order of the first one's; each model brings its
            own frontend.
        trust: import the code that a custom model names.
        calibrated: where ``psla calibrate`` fitted thresholds and probabilities to the (single) model, give them; its
            thresholds are then those of events too, unless `rules` are given.
        options: fields of :class:`Options`, such as ``policy="repeat"``.

    Raises:
        CheckpointError: naming the directory and what is wrong with it.
        CalibrationError: the calibration of the model is of another one.
        TaggerError: for models with different classes, or an option that cannot be.
    """
    paths = [model] if isinstance(model, str | os.PathLike) else list(model)
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise TaggerError(
            f"{str(error).replace('Options.__init__() ', '')}: see psla_jax.tagging.tagger.Options."
        ) from error
    models = [(os.fspath(path), load_model(path, trust=trust)) for path in paths]
    if not calibrated:
        return Tagger(models, chosen)
    calibration, notes = _calibration_of(models, chosen)
    if calibration is not None and "rules" not in options:
        chosen = replace(chosen, rules=Rules(threshold=calibration.event_thresholds))
    return Tagger(models, chosen, calibration=calibration, notes=notes)


def _calibration_of(models: Sequence[tuple[str, Model]], options: Options) -> tuple[Calibration | None, list[str]]:
    """What was fitted to a single model, and what is odd about it."""
    places = [find_model(Path(path)) for path, _ in models]
    if len(places) != 1:
        have = [path for (path, _), place in zip(models, places) if (place / CALIBRATION).exists()]
        names = ", ".join(dict.fromkeys(have))
        return None, [f"what {names} was calibrated to is not of the ensemble, which has scores alone"] if have else []
    card = models[0][1].card
    found = read_calibration(places[0], card.vocabulary, lambda: fingerprint(places[0], card))
    if found is None or found.fitted.get("policy") == options.policy:
        return found, []
    return found, [
        f"{models[0][0]} was calibrated with --policy {found.fitted.get('policy')}: with {options.policy}, recordings "
        "shorter than a window have other scores, and their probabilities may be off"
    ]


class Tagger:
    """Tags recordings of any length. Calls do not disturb each other: one tagger serves any number of threads.

    Attributes:
        vocabulary: the classes, in the order of all scores.
        options: see :class:`Options`.
        calibration: of the model, which makes its scores probabilities and decisions; None where there is none.
        notes: what is odd about it, a sentence each.
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
        self.options = options or Options()
        self.calibration, self.notes = calibration, tuple(notes)
        self.vocabulary: Vocabulary = models[0][1].card.vocabulary
        self._orders = [
            _class_order(self.vocabulary, model.card.vocabulary, name, models[0][0]) for name, model in models
        ]
        self.on_compile = on_compile or (lambda text: None)
        size = self.options.batch_size or batch_size_for_device()
        self._networks = [
            Network(model, self.options.policy, size, lambda text: self.on_compile(text)) for _, model in models
        ]
        self.cutters()  # Refuses an overlap that cannot be.

    def __repr__(self) -> str:
        names = ", ".join(network.model.card.model.name for network in self._networks)
        return f"Tagger({names}; {len(self.vocabulary)} classes, windows of {self.window_seconds:.1f} s)"

    @property
    def model(self) -> nnx.Module:
        """The evaluation view of the (first) network: `(batch, frames, mels)` to `(batch, classes)`."""
        return self._networks[0].model.network

    @property
    def frontend(self) -> Frontend:
        """Waveforms to the spectrograms of the (first) model."""
        return self._networks[0].frontend

    @property
    def window_seconds(self) -> float:
        """The longest recording that is scored at once, in seconds."""
        return max(network.frontend.num_samples for network in self._networks) / SAMPLE_RATE

    @property
    def events_from(self) -> str:
        """``head``, or ``windows`` if a model of the ensemble does not score steps, or that was asked for."""
        by_head = self.options.times == "head" and all(network.has_frames for network in self._networks)
        return "head" if by_head else "windows"

    def cutters(self) -> list[Cutter]:
        """What cuts a recording into windows, for each of the networks.

        Raises:
            WindowError: the overlap is impossible, or too small for so short windows.
        """
        sizes = [network.frontend.num_samples for network in self._networks]
        return [Cutter(size, hop_of(size, self.options.overlap)) for size in sizes]

    def clip_state(self, name: str, wanted: Wanted, classes: Sequence[int] | None, rate: float = 0.0) -> ClipState:
        """Collects what the networks say of the windows of one recording.

        Args:
            name: of the recording.
            wanted: what is kept of every step.
            classes: as for :meth:`tag`.
            rate: its samples per second; 0 if it is not known.
        """
        selected = select(self.vocabulary, classes)
        steps = [network.steps for network in self._networks]
        rules = self.options.rules
        return ClipState(
            name, self.vocabulary, rules, wanted, selected, steps, self.events_from, rate, self.calibration
        )

    def look(self, number: int, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        """What one of the networks says of one window, once it has been computed.

        Returns:
            Scores ``(classes,)``, and those of the steps ``(steps, classes)``; None where the head has none.
        """
        output, order = self._networks[number]([window.samples]), self._orders[number]
        frames = None if output.frames is None else np.asarray(output.frames)[0][:, order]
        return np.asarray(output.scores)[0][order], frames

    def tag(self, audio: Audio, sample_rate: float | None = None, *, classes: Sequence[int] | None = None) -> Tags:
        """What is in a recording.

        Args:
            audio: a path, or an array `(samples,)` or `(samples, channels)`, see :func:`psla_jax.audio.from_samples`.
            sample_rate: of an array.
            classes: indices of the classes to look for; None for all.

        Raises:
            AudioError: a file or an array that gives no waveform.
        """
        return self._one(audio, sample_rate, Wanted(), classes).result()

    def timeline(self, audio: Audio, sample_rate: float | None = None) -> Timeline:
        """The scores of every step of 0.32 s; an hour of 527 classes takes 12 MB. Arguments as for :meth:`tag`."""
        return self._one(audio, sample_rate, Wanted(timeline=True), None).timeline()

    def embed(self, audio: Audio, sample_rate: float | None = None) -> Embeddings:
        """Embeddings of the recording and of its steps. Arguments as for :meth:`tag`.

        Raises:
            TaggerError: for an ensemble, whose models share no space, or a model of somebody's own code.
        """
        self.require_embeddings()
        return self._one(audio, sample_rate, Wanted(embeddings=True), None).embeddings()

    def plot(
        self,
        audio: Audio,
        place: str | os.PathLike[str],
        sample_rate: float | None = None,
        *,
        classes: Sequence[int] | None = None,
        top: int = SHOWN,
    ) -> Tags:
        """Tags a recording and draws it: its log-mel, the scores of its top classes over time, and the attention.

        Args:
            audio: as for :meth:`tag`, likewise ``sample_rate`` and ``classes``.
            place: of the PNG; what is there is replaced.
            sample_rate: of an array.
            classes: those to look for.
            top: how many classes are drawn, see :func:`psla_jax.tagging.picture.draw`.

        Returns:
            What :meth:`tag` does.

        Raises:
            PictureError: what draws pictures is not installed, or the place does not end in .png.
            AudioError: as for :meth:`tag`.
        """
        picture.require(place)
        state = self._one(audio, sample_rate, Wanted(picture=True), classes)
        tags = state.result()
        picture.draw(place, tags, state.strips(), spectrum(self._waveform(audio, sample_rate)), top=top)
        return tags

    def require_embeddings(self) -> None:
        """Raises TaggerError if these models have no embeddings to give."""
        if len(self._networks) > 1:
            raise TaggerError("the models of an ensemble share no space of embeddings: name one model.")
        if not self._networks[0].num_features:
            raise TaggerError("the model is somebody's own code, which has no embeddings to give: name another one.")

    def tag_all(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        classes: Sequence[int] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Tags | Failure]:
        """Tags many files, in their order, with one of another's windows in a batch where they are short.

        Args:
            paths: of the files.
            classes: as for :meth:`tag`.
            on_progress: told a clip and how many of its seconds are done.

        Yields:
            A result for each path, or a :class:`Failure`: one bad file does not stop the others.
        """
        for state in self.analyse(paths, Wanted(), classes, on_progress):
            yield state if isinstance(state, Failure) else state.result()

    def analyse(
        self,
        paths: Iterable[str | os.PathLike[str]],
        wanted: Wanted,
        classes: Sequence[int] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[ClipState | Failure]:
        """As :meth:`tag_all`, with everything that is wanted of each clip."""
        states = (self._state(os.fspath(path), wanted, classes, path) for path in paths)
        yield from self._run(states, on_progress or (lambda clip, seconds: None))

    def _waveform(self, given: Audio, rate: float | None) -> Iterable[np.ndarray]:
        """The blocks of a file, or an array as one."""
        if isinstance(given, str | os.PathLike):
            return audio.blocks(given, channel=self.options.channel)
        return [audio.from_samples(given, rate or 0, channel=self.options.channel)]

    def _one(self, given: Audio, rate: float | None, wanted: Wanted, classes: Sequence[int] | None) -> ClipState:
        if isinstance(given, str | os.PathLike):
            if rate is not None:
                raise TaggerError(f"sample_rate is {rate!r} for the file {given}, which says so itself: leave it out.")
            state = self._state(os.fspath(given), wanted, classes, given)
        else:
            if rate is None:
                raise TaggerError("an array says nothing of its sample rate: give sample_rate too.")
            (samples,) = self._waveform(given, rate)
            state = self._state("the array", wanted, classes, samples, rate)
        (found,) = self._run([state], lambda clip, seconds: None)
        if isinstance(found, Failure):
            raise found.error
        return found

    def _state(
        self, name: str, wanted: Wanted, classes: Sequence[int] | None, source: Any, rate: float = 0.0
    ) -> tuple[ClipState, Any]:
        return self.clip_state(name, wanted, classes, rate), source

    def _run(
        self, clips: Iterable[tuple[ClipState, Any]], on_progress: Callable[[str, float], None]
    ) -> Iterator[ClipState | Failure]:
        """Reads, computes, and hands every clip over once all of its windows are in."""
        batches = Batches(self._networks, self._orders, on_progress)
        waiting: deque[tuple[ClipState, AudioError | None]] = deque()
        depth = READ_AHEAD + self._networks[0].batch_size
        for state, item in ahead(self._windows(clips), depth):
            if isinstance(item, tuple):
                batches.add(state, *item)
            else:
                waiting.append((state, item))
            while waiting and waiting[0][0].complete:
                yield _handed_over(*waiting.popleft())
        batches.flush()
        for state, error in waiting:
            yield _handed_over(state, error)

    def _windows(
        self, clips: Iterable[tuple[ClipState, Any]]
    ) -> Iterator[tuple[ClipState, tuple[int, Window] | AudioError | None]]:
        """Each clip's windows with the number of the network that wants them, then None or what is wrong with it."""
        for state, source in clips:
            cutters = self.cutters()
            try:
                for block in self._blocks(source, state):
                    state.heard(block)
                    for number, cutter in enumerate(cutters):
                        for window in cutter.push(block):
                            state.expect(number)
                            yield state, (number, window)
                if state.samples < FRAME_LENGTH:
                    raise AudioError(
                        state.clip, f"is too short ({state.samples} samples at 16 kHz): give 25 ms or more."
                    )
            except AudioError as error:
                state.ended()
                yield state, error
                continue
            for number, cutter in enumerate(cutters):
                for window in cutter.finish():
                    state.expect(number)
                    yield state, (number, window)
            state.ended()
            yield state, None

    def _blocks(self, source: Any, state: ClipState) -> Iterable[np.ndarray]:
        if isinstance(source, np.ndarray):
            return [source]
        state.rate = audio.header(source)[1]
        return audio.blocks(source, channel=self.options.channel)


def _handed_over(state: ClipState, error: AudioError | None) -> ClipState | Failure:
    return state if error is None else Failure(state.clip, error)


def _class_order(wanted: Vocabulary, own: Vocabulary, name: str, first: str) -> np.ndarray:
    """Where each class of the first model is among another's, matched by mid."""
    differing = sorted(set(wanted.mids) ^ set(own.mids))
    if differing:
        raise TaggerError(
            f"the models {first} and {name} differ in {len(differing)} classes, such as {differing[0]!r}: an ensemble "
            "needs models of the same classes."
        )
    return np.array([own.index(mid) for mid in wanted.mids])
