"""What is known of one recording while its windows come in, in memory that does not grow with it unless asked to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from psla_jax.audio import SAMPLE_RATE
from psla_jax.calibration import Calibration
from psla_jax.ontology import Vocabulary
from psla_jax.tagging.events import EventFinder, Rules, Span
from psla_jax.tagging.result import Embeddings, Event, Tags, Timeline
from psla_jax.tagging.strip import Strip, Strips
from psla_jax.tagging.windows import Joiner, Window, beginning_of, steps_of

SILENCE = 2.0**-15
"""Recordings whose samples are all smaller are silent: less than the last bit of 16."""


@dataclass(frozen=True)
class Wanted:
    """What is kept of every step: it grows with the recording, but for a picture."""

    timeline: bool = False
    embeddings: bool = False
    picture: bool = False


class Mean:
    """The mean of several networks' timelines: their windows differ, so each is ahead by another number of steps."""

    def __init__(self, networks: int) -> None:
        self._held: list[list[np.ndarray]] = [[] for _ in range(networks)]

    def push(self, number: int, steps: np.ndarray) -> np.ndarray:
        """Takes steps of one network, and gives those for which all are there."""
        if len(steps):
            self._held[number].append(steps)
        if len(self._held) == 1:
            self._held[0] = []
            return steps
        count = min(sum(map(len, held)) for held in self._held)
        if count == 0:
            return steps[:0]
        joined = [np.concatenate(held) for held in self._held]
        self._held = [[rest[count:]] for rest in joined]
        return np.mean([rest[:count] for rest in joined], axis=0)


class ClipState:
    """Collects the windows of one recording. Samples are counted by the thread that reads, windows by the one that
    computes; the results are there to be asked for once ``complete``.
    """

    def __init__(
        self,
        clip: str,
        vocabulary: Vocabulary,
        rules: Rules,
        wanted: Wanted,
        selected: np.ndarray,
        steps: list[int],
        events_from: str,
        rate: float,
        calibration: Calibration | None = None,
    ) -> None:
        self.clip, self.rate, self._calibration = clip, rate, calibration
        self.samples = 0
        self.peak = 0.0
        self._ended = self._finished = False
        self._expected, self._absorbed = [0] * len(steps), [0] * len(steps)
        self._vocabulary, self.wanted, self._selected = vocabulary, wanted, selected
        self._steps, self._events_from = steps, events_from
        self._best = [np.full(len(vocabulary), -np.inf, np.float32) for _ in steps]
        self._joiners, self._mean = [Joiner() for _ in steps], Mean(len(steps))
        self._finder = EventFinder(_of_selected(rules, selected, len(vocabulary)), len(selected))
        self._spans: list[Span] = []
        self._timeline: list[np.ndarray] = []
        self._features, self._frames = Joiner(), list[np.ndarray]()
        self._strips = Strip(), Strip()

    def heard(self, block: np.ndarray) -> None:
        """Notes a block of samples that was read."""
        self.samples += len(block)
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    def expect(self, number: int) -> None:
        """Notes that a window is on its way through a network."""
        self._expected[number] += 1

    @property
    def certain(self) -> int:
        """How many steps are known for good, so that later windows change no event in them."""
        return self._finder.steps

    def over(self) -> list[Span]:
        """The events that are over for good. Each is given once, and is then missing from the results."""
        spans, self._spans = sorted(self._spans), []
        return spans

    def going_on(self) -> list[Span]:
        """The events that have begun for good and may not be over yet, as they are now."""
        return self._finder.going_on()

    def rest(self) -> list[Span]:
        """Brings it to its end, and gives the events that were not over yet."""
        self._finish()
        return self.over()

    def copied(self) -> ClipState:
        """The same again, to see what would come of it."""
        return copy.deepcopy(self, {id(self._vocabulary): self._vocabulary})

    def ended(self) -> None:
        """Notes that there are no more windows to come."""
        self._ended = True

    @property
    def complete(self) -> bool:
        """Whether all windows are in."""
        return self._ended and self._absorbed == self._expected

    @property
    def duration(self) -> float:
        """Seconds that were read."""
        return self.samples / SAMPLE_RATE

    def absorb(
        self,
        number: int,
        window: Window,
        scores: np.ndarray,
        frames: np.ndarray | None = None,
        attention: np.ndarray | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        """Takes what a network says of a window; windows of one network come in their order.

        Args:
            number: of the network.
            window: what it saw.
            scores: ``(classes,)``.
            frames: ``(steps, classes)``; None where the head does not score steps.
            attention: likewise; from all networks or from none.
            features: ``(steps, channels)``, or None.
        """
        self._absorbed[number] += 1
        self._best[number] = np.maximum(self._best[number], scores)
        size = self._steps[number]
        steps = min(window.steps, size)
        if self._events_from == "windows" or frames is None:
            frames = np.broadcast_to(scores, (steps, len(scores)))
        if self.wanted.picture and attention is not None:
            frames = np.concatenate([frames[:steps], attention[:steps]], axis=1)
        self._take(number, self._joiners[number].push(window.start, frames[:steps], size))
        if self.wanted.embeddings and features is not None:
            self._frames.append(self._features.push(window.start, features[:steps], size))

    def _take(self, number: int, steps: np.ndarray) -> None:
        """Passes finished steps on to the events, and to the timeline if it is wanted."""
        steps = self._mean.push(number, steps)
        if len(steps) == 0:
            return
        steps, attention = np.split(steps, [len(self._vocabulary)], axis=1)  # of which there may be none
        self._spans += self._finder.push(steps[:, self._selected])
        if self.wanted.timeline:
            self._timeline.append(steps.astype(np.float16))
        if self.wanted.picture:
            for strip, values in zip(self._strips, (steps, attention)):
                strip.push(values)

    def _finish(self) -> None:
        """Passes the last steps on; called again, it does nothing."""
        if self._finished:
            return
        self._finished = True
        for number, joiner in enumerate(self._joiners):
            self._take(number, joiner.finish())
        self._spans += self._finder.finish()
        if self.wanted.embeddings:
            self._frames.append(self._features.finish())

    def result(self) -> Tags:
        """Scores and events."""
        self._finish()
        scores = np.mean(self._best, axis=0)
        events = tuple(self.event(span) for span in sorted(self._spans))
        long = max(self._expected) > 1
        return Tags(
            self.clip, self.duration, scores, events, self._vocabulary, self._selected, long, self._events_from,
            notes(self.clip, self.peak, self.rate), self._calibration,
        )  # fmt: skip

    def timeline(self) -> Timeline:
        """The scores of every step."""
        self._finish()
        return Timeline(np.concatenate(self._timeline), self._vocabulary)

    def embeddings(self) -> Embeddings:
        """Of the clip and of every step."""
        self._finish()
        frames = np.concatenate([block for block in self._frames if len(block)])
        return Embeddings(frames.mean(axis=0), frames)

    def strips(self) -> Strips:
        """What a picture shows of the steps."""
        self._finish()
        scores, attention = (strip.finish() for strip in self._strips)
        return Strips(scores, attention if attention.size else None, self._strips[0].each)

    def event(self, span: Span) -> Event:
        """An event in seconds, with its class."""
        i = int(self._selected[span.column])
        last = span.stop >= steps_of(self.samples)
        offset = self.duration if last else min(beginning_of(span.stop), self.duration)
        return Event(
            round(beginning_of(span.start), 3), round(offset, 3), self._vocabulary.mids[i], self._vocabulary.names[i],
            span.score,
        )  # fmt: skip


def notes(name: str, peak: float, rate: float) -> tuple[str, ...]:
    """What is odd about sound, a sentence each.

    Args:
        name: what it is called.
        peak: its largest sample.
        rate: its samples per second; 0 if they are not known.
    """
    found = []
    if peak < SILENCE:
        found.append(f"{name} is silent: its scores are those of silence.")
    if 0 < rate < SAMPLE_RATE:
        found.append(
            f"{name} was sampled at {rate:g} Hz: it has nothing above {rate / 2:g} Hz, "
            "and the model was trained with sound up to 8000 Hz."
        )
    return tuple(found)


def _of_selected(rules: Rules, selected: np.ndarray, classes: int) -> Rules:
    """The rules with the thresholds of the selected classes alone."""
    threshold = np.broadcast_to(np.asarray(rules.threshold, np.float32), (classes,))
    return replace(rules, threshold=threshold[selected])
