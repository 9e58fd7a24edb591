"""Sound as it comes: ``Stream(tagger).push(block)`` tells each event once, when it starts, grows and ends.

The windows, their scores and the rules are those of :meth:`psla_jax.tagging.tagger.Tagger.tag`, so that the events
which end are those of the same sound in a file. An event is certain once the last window that sees it is in, more than
a window later. A first impression is there much sooner: what the events would be if the sound ended here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from psla_jax import audio
from psla_jax.audio import SAMPLE_RATE, AudioError, Resampler
from psla_jax.tagging.clip import Wanted
from psla_jax.tagging.events import Rules, Span
from psla_jax.tagging.ledger import Change, Kind, Ledger
from psla_jax.tagging.result import Event, clock
from psla_jax.tagging.tagger import Tagger
from psla_jax.tagging.windows import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    STEP_SAMPLES,
    STEP_SECONDS,
    Cutter,
    Window,
    steps_of,
)

RATES = 1_000, 1_000_000
"""Samples per second that a stream may have."""
MOST_CHANNELS = 64
"""A block with more is taken for one that is transposed."""
PIECE_SECONDS = 10
"""Of a longer block, what is resampled at a time."""
MEASURED = 16
"""Windows whose computing time is averaged."""
_EDGE = FRAME_LENGTH - FRAME_SHIFT
"""Samples that the last frame of a step reaches beyond it."""


class StreamError(ValueError):
    """A stream that cannot be used like that; the message says why."""


@dataclass(frozen=True)
class Update:
    """Something to tell of one event."""

    kind: Kind
    """``start``; ``update``: its score has risen by 0.05, it has grown by 5 s, or it sounds no more, or again;
    ``end``; ``cancel`` instead of an end: a start that was told too early and came to nothing."""
    id: int
    """The same in all updates of an event; no other event of the stream has it."""
    event: Event
    """As far as it is known; with ``end``, for good."""
    sounding: bool
    """Whether the event still lasts at the newest step that is known, or may be continued from it."""
    heard: float
    """Seconds of the stream that had been heard."""

    def __str__(self) -> str:
        e = self.event
        when = f"{clock(e.onset)} - {clock(e.offset)}"
        return f"{clock(self.heard)}  {self.kind} #{self.id}  {when}  {e.score:.3f}  {e.name}"


@dataclass(frozen=True)
class Latency:
    """How late a stream is, in seconds of sound and at most. ``compute`` comes on top."""

    start: float
    """From a sound's beginning to a first impression of it: a hop, and the steps that make an event."""
    certain: float
    """From a sound's beginning until it is certain: a window and a hop, and the steps that smoothing looks ahead."""
    end: float
    """From a sound's end to the ``end`` of its event, after which nothing can join it."""
    compute: float
    """Seconds that the computer takes for a window of every model, measured over the last few."""
    load: float
    """Seconds that it takes for a second of sound; above 1 it falls behind."""

    def __str__(self) -> str:
        return (
            f"a sound is told within {self.start + self.compute:.1f} s and certain within "
            f"{self.certain + self.compute:.1f} s; computing takes {self.load:.0%} of the time"
        )


class Stream:
    """Finds events in sound that comes block by block. Memory does not grow with it.

    ``push`` computes before it returns, now and then for ``latency.compute`` seconds: an audio callback, which may not
    wait, puts blocks into a queue for a thread that pushes (:class:`psla_jax.tagging.inbox.Inbox`; ``psla listen``).
    The overlap of windows is the tagger's, ``psla_jax.load(MODEL, overlap=0.9)``: the more, the sooner events are told
    and the more is computed, 1 / (1 - overlap) windows for every window of sound.

    Used as a context manager, it is closed at the end. Pushes from several threads wait for each other.
    """

    def __init__(
        self,
        tagger: Tagger,
        sample_rate: float = SAMPLE_RATE,
        *,
        classes: Sequence[int] | None = None,
        early: bool = True,
        on_event: Callable[[Update], None] | None = None,
    ) -> None:
        """Compiles what is not compiled yet, so that no push has to wait for that.

        Args:
            tagger: whose models, windows and rules are used.
            sample_rate: samples per second of the blocks.
            classes: indices of the classes to look for; None for all.
            early: tell events from the first impression. It may be revised until they end, or cancelled. Otherwise
                events start once they are certain.
            on_event: called with every update, by the thread that pushes, after each push.

        Raises:
            AudioError: the sample rate is none.
        """
        audio.require_rate("the stream", sample_rate)
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise AudioError(
                "the stream", f"has the sample rate {sample_rate!r}: use {RATES[0]} to {RATES[1]} samples per second."
            )
        self._tagger, self._rate, self._classes, self._early = tagger, float(sample_rate), classes, early
        self._on_event = on_event or (lambda update: None)
        self._lock = threading.Lock()
        self._closed = False
        self._channels = 0
        self._rules = tagger.options.rules
        self._ledger = Ledger(self._rules.gap_steps())
        self._seconds: list[deque[float]] = [deque(maxlen=MEASURED) for _ in tagger.cutters()]
        self._offset, self._loudest = 0.0, 0.0
        self._begin()
        self._warm_up()

    def _begin(self) -> None:
        """Forgets what was heard: the next sample is the first of its windows."""
        self._pushed = 0
        self._resampler = Resampler(self._rate)
        self._state = self._tagger.clip_state("the stream", Wanted(), self._classes, self._rate)
        self._cutters = self._tagger.cutters()
        self._openings: list[tuple[Window, np.ndarray, np.ndarray | None] | None] = [None] * len(self._cutters)
        self._newest = [0] * len(self._cutters)
        self._waiting = np.zeros(0, np.float32)
        self._steps = 0

    def _warm_up(self) -> None:
        """Compiles every model, and takes the time of a window of each."""
        for number, cutter in enumerate(self._cutters):
            for _ in range(2):
                self._seconds[number].clear()
                self._look(number, Window(0, np.zeros(cutter.size, np.float32)))

    @property
    def heard(self) -> float:
        """Seconds from the beginning of the stream, what was skipped included."""
        return self._offset + self._pushed / self._rate

    @property
    def peak(self) -> float:
        """The largest sample so far; 1 is full scale."""
        return max(self._loudest, self._state.peak)

    @property
    def latency(self) -> Latency:
        """How late the stream is; see :class:`Latency`."""
        means = [sum(seconds) / max(1, len(seconds)) for seconds in self._seconds]
        loads = [mean / (cutter.hop * STEP_SECONDS) for mean, cutter in zip(means, self._cutters)]
        return _latency(self._cutters, self._rules, sum(means), sum(loads))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(self, block: Any) -> list[Update]:
        """Hears a block.

        Args:
            block: ``(samples,)`` or ``(samples, channels)``, of any length and always with as many channels; floats in
                [-1, 1], or integers of 8, 16 or 32 bits.

        Returns:
            What there is to tell; each update is given once.

        Raises:
            AudioError: the block holds no such samples. Nothing of it is heard, and the stream goes on.
            StreamError: the stream is closed, which it also is after a computation that failed.
        """
        with self._lock:
            if self._closed:
                raise StreamError("the stream is closed: begin a new one.")
            mono = self._mono(block)
            updates = self._safely(self._hear(mono))
        return self._tell(updates)

    def skip(self, seconds: float) -> list[Update]:
        """Notes that so many seconds of sound were lost here: events end before them, and new ones may begin after.

        Raises:
            StreamError: the stream is closed, or the number is none.
        """
        with self._lock:
            if self._closed:
                raise StreamError("the stream is closed: begin a new one.")
            if not 0 <= seconds < np.inf:
                raise StreamError(f"{seconds!r} seconds cannot be skipped: give a number from 0 on.")
            updates = self._safely(self._end())
            self._offset, self._loudest = self.heard + seconds, self.peak
            self._begin()
        return self._tell(updates)

    def close(self) -> list[Update]:
        """Hears what is left of the last window, and ends all events. A second call does nothing."""
        with self._lock:
            updates = [] if self._closed else self._safely(self._end())
            self._closed = True
        return self._tell(updates)

    def _safely(self, updates: Iterator[Update]) -> list[Update]:
        """All of them; what is interrupted half-way cannot go on."""
        try:
            return list(updates)
        except BaseException:
            self._closed = True
            raise

    def _tell(self, updates: list[Update]) -> list[Update]:
        for update in updates:
            self._on_event(update)
        return updates

    def _mono(self, block: Any) -> np.ndarray:
        """Samples of one channel, float32 ``(samples,)``."""
        try:
            array = np.asarray(block)
        except ValueError as error:
            raise AudioError("the block", "is no array of numbers: give (samples,) or (samples, channels).") from error
        channels = array.shape[1] if array.ndim == 2 else 1
        if array.ndim not in (1, 2) or not 1 <= channels <= MOST_CHANNELS:
            raise AudioError("the block", f"has the shape {array.shape}: give (samples,) or (samples, channels).")
        if self._channels not in (0, channels):
            raise AudioError("the block", f"has {channels} channels, those before it had {self._channels}: mix them.")
        mono = audio.mono_of("the block", array, self._tagger.options.channel)
        self._channels = channels
        return mono

    def _hear(self, mono: np.ndarray) -> Iterator[Update]:
        """Resamples, and goes on by as many steps as are complete."""
        size = int(PIECE_SECONDS * self._rate)
        for first in range(0, len(mono), size):
            piece = mono[first : first + size]
            self._pushed += len(piece)
            yield from self._go_on(self._resampler.push(piece))

    def _go_on(self, samples: np.ndarray) -> Iterator[Update]:
        """Takes samples at 16 kHz step by step, so that nothing depends on how they are cut into blocks."""
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= (size := STEP_SAMPLES + (_EDGE if self._steps == 0 else 0)):
            piece, self._waiting = self._waiting[:size], self._waiting[size:]
            self._state.heard(piece)
            self._steps += 1
            if any([self._feed(number, piece) for number in range(len(self._cutters))]):
                yield from self._revised()

    def _feed(self, number: int, piece: np.ndarray) -> bool:
        """Gives a step to one of the models; whether there was something to look at."""
        cutter = self._cutters[number]
        windows = list(cutter.push(piece))
        for window in windows:
            self._absorb(number, window)
        if not windows and self._early and self._steps < cutter.size // STEP_SAMPLES and self._steps % cutter.hop == 0:
            # Before the first window is full, it is looked at as a recording that ends here.
            window = cutter.so_far()
            self._openings[number] = window, *self._look(number, window)
            self._newest[number] = window.steps
            return True
        return bool(windows)

    def _look(self, number: int, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        began = time.perf_counter()
        found = self._tagger.look(number, window)
        self._seconds[number].append(time.perf_counter() - began)
        return found

    def _absorb(self, number: int, window: Window) -> None:
        self._state.expect(number)
        self._state.absorb(number, window, *self._look(number, window), None)
        self._openings[number] = None
        self._newest[number] = window.start + window.steps

    def _revised(self) -> Iterator[Update]:
        """What is to be told after new windows."""
        over, certain = self._state.over(), self._state.certain
        if self._early:
            changes = self._ledger.revise(over, self._impression(), certain, min(self._newest))
        else:
            shortest = self._rules.duration_steps()
            begun = [span for span in self._state.going_on() if span.stop - span.start >= shortest]
            changes = self._ledger.revise(over, begun, certain, certain)
        return map(self._update, changes)

    def _impression(self) -> list[Span]:
        """The events that are not over, as they would be if the sound ended here."""
        copy = self._state.copied()
        for number, opening in enumerate(self._openings):
            if opening is not None:
                copy.absorb(number, *opening, None)
        return copy.rest()

    def _end(self) -> Iterator[Update]:
        """What is to be told when the sound ends: the last window is not full, and nothing is uncertain any more."""
        yield from self._go_on(self._resampler.finish())
        self._state.heard(self._waiting)
        if self._state.samples >= FRAME_LENGTH:
            for number, cutter in enumerate(self._cutters):
                for window in [*cutter.push(self._waiting), *cutter.finish()]:
                    self._absorb(number, window)
        self._waiting = self._waiting[:0]
        yield from map(self._update, self._ledger.revise(self._state.rest(), [], np.inf, self._steps))

    def _update(self, change: Change) -> Update:
        event = self._state.event(change.span)
        onset, offset = (round(self._offset + seconds, 3) for seconds in (event.onset, event.offset))
        heard = round(self._offset + self._state.duration, 3)
        return Update(change.kind, change.id, replace(event, onset=onset, offset=offset), change.sounding, heard)


def _latency(cutters: Sequence[Cutter], rules: Rules, compute: float, load: float) -> Latency:
    """What follows from windows and rules; a window is complete when the last frame of its last step is there."""
    edge = _EDGE / SAMPLE_RATE
    hop = max(cutter.hop for cutter in cutters)
    window = max(cutter.hop + steps_of(cutter.size) for cutter in cutters)
    ahead = rules.smooth // 2
    long_enough, quiet_enough = rules.duration_steps() - 1, max(rules.gap_steps(), 1) - 1
    return Latency(
        start=round((hop + long_enough) * STEP_SECONDS + edge, 3),
        certain=round((window + long_enough + ahead) * STEP_SECONDS + edge, 3),
        end=round((window + quiet_enough + ahead) * STEP_SECONDS + edge, 3),
        compute=compute,
        load=load,
    )
