"""Detects events in live audio: ``Stream(tagger).push(block)`` returns updates as events start, change and end.

Windows, scores and rules are those of :meth:`psla_jax.tagging.tagger.Tagger.tag`, so the ended events are those of the
same audio in a file. An event is final once its last window has been scored, more than a window after it begins. Early
updates come much sooner: they report the events as if the audio ended at this point.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psla_jax.audio import decode
from psla_jax.audio.decode import AudioError
from psla_jax.audio.resampling import SAMPLE_RATE, Resampler
from psla_jax.tagging.events import Span
from psla_jax.tagging.inputs import MAX_CHANNELS, read_block
from psla_jax.tagging.live.event_tracker import Change, EventTracker, Kind
from psla_jax.tagging.recording import FrameOutputs
from psla_jax.tagging.result import Event, clock
from psla_jax.tagging.tagger import Tagger
from psla_jax.tagging.windows import Window

RATES = 1_000, 1_000_000
"""Minimum and maximum sample rate in Hz."""
RESAMPLED_SECONDS = 10
"""Maximum duration that is resampled at a time, to bound the memory of long blocks."""
TIMED_WINDOWS = 16
"""Number of recent windows of which the computing time is averaged."""


class StreamError(ValueError):
    """Invalid use of a stream; the message gives the reason."""


@dataclass(frozen=True)
class Update:
    """A change of one event."""

    kind: Kind
    """``start``; ``update``: the score rose by 0.05, the event grew by 5 s, or `sounding` changed; ``end``; or
    ``cancel`` instead of ``end``: an early start that later windows did not confirm."""
    id: int
    """Number of the event, unique in the stream."""
    event: Event
    """Current estimate of the event; final if `kind` is ``end``."""
    sounding: bool
    """Whether the event lasts until the newest output frame, or can still be continued from there."""
    position: float
    """Position in the stream up to which audio had been received, in seconds."""

    def __str__(self) -> str:
        e, when = self.event, f"{clock(self.event.onset)} - {clock(self.event.offset)}"
        return f"{clock(self.position)}  {self.kind} #{self.id}  {when}  {e.score:.3f}  {e.name}"


@dataclass(frozen=True)
class Latency:
    """Maximum delays of updates in seconds of audio. The computing time `compute` is added to them."""

    start: float
    """From the onset of a sound to its first early update: a hop, and the minimum duration of an event."""
    certain: float
    """From the onset of a sound until it is final: a window, a hop, the minimum duration, and half the smoothing."""
    end: float
    """From the offset of a sound to the ``end`` of its event, after which no later sound can continue it."""
    compute: float
    """Computing time of one window of every model, in seconds; mean of the last windows."""
    load: float
    """Computing time per second of audio, in seconds; above 1 the stream falls behind."""

    def __str__(self) -> str:
        return (
            f"events are reported within {self.start + self.compute:.1f} s and final within "
            f"{self.certain + self.compute:.1f} s; computing takes {self.load:.0%} of the time"
        )


class Stream:
    """Detects events in audio that arrives in blocks, in constant memory.

    ``push`` computes before it returns, sometimes for ``latency.compute`` seconds. A real-time audio callback should
    therefore put blocks into a :class:`psla_jax.tagging.live.audio_queue.AudioQueue` for another thread, as ``psla
    listen`` does. The overlap of the windows is that of the tagger, ``psla_jax.load(MODEL, overlap=0.9)``: a higher
    overlap reports events sooner and computes more, 1 / (1 - overlap) windows per window of audio.

    As a context manager, the stream is closed on exit. Pushes from several threads are serialized.
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
        """Compiles the models, so that no push has to wait for compilation.

        Args:
            tagger: provides models, windows and rules.
            sample_rate: sample rate of the blocks in Hz.
            classes: indices of the classes to detect; None for all.
            early: report events before their scores are final; they may then be revised until they end, or cancelled.
                Otherwise events are reported later, and never cancelled.
            on_event: called with every update by the pushing thread, at the end of each push.

        Raises:
            AudioError: the sample rate is invalid.
            StreamError: the models of an ensemble need waveforms of several sample rates.
        """
        decode.require_rate("the stream", sample_rate)
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise AudioError(
                "the stream", f"has the sample rate {sample_rate!r}: use {RATES[0]} to {RATES[1]} samples per second."
            )
        if len(rates := tagger.sample_rates) > 1:
            listed = " and ".join(map(str, rates))
            raise StreamError(f"the models need sound at {listed} Hz: use models of one frontend.sample_rate.")
        self._tagger, self._rate, self._classes, self._early = tagger, float(sample_rate), classes, early
        self._on_event = on_event or (lambda update: None)
        self._lock, self._closed, self._channels = threading.Lock(), False, 0
        self._channel_axis: int | None = None  # Axis of the channels in the previous block.
        self._rules, self._grid = tagger.options.rules, tagger.grid
        # Samples by which the last spectrogram frame of an output frame extends beyond it.
        self._overhang = max(cutter.grid.window for cutter in tagger.cutters()) - self._grid.hop
        self._tracker = EventTracker(self._rules.min_gap_frames(self._grid))
        self._compute_seconds: list[deque[float]] = [deque(maxlen=TIMED_WINDOWS) for _ in tagger.cutters()]
        self._offset, self._earlier_peak = 0.0, 0.0
        self.reading = decode.Reading()
        self._reset()
        for number, cutter in enumerate(self._cutters):
            for _ in range(2):  # The first window compiles the model; the second one measures the computing time.
                self._compute_seconds[number].clear()
                self._score(number, Window(0, np.zeros(cutter.size, np.float32)))

    def _reset(self) -> None:
        """Discards all audio: the next sample is the first one of the next window."""
        self._pushed = 0
        self._resampler = Resampler(self._rate, self._grid.rate)
        self._state = self._tagger.accumulator("the stream", FrameOutputs(), self._classes, self._rate)
        self._cutters = self._tagger.cutters()
        self._incomplete: list[tuple[Window, np.ndarray, np.ndarray | None] | None] = [None] * len(self._cutters)
        self._scored_frames = [0] * len(self._cutters)
        self._buffer, self._frames = np.zeros(0, np.float32), 0

    @property
    def position(self) -> float:
        """Seconds since the start of the stream, including skipped audio."""
        return self._offset + self._pushed / self._rate

    @property
    def peak(self) -> float:
        """Largest absolute sample so far; 1 is full scale."""
        return max(self._earlier_peak, self._state.peak)

    @property
    def latency(self) -> Latency:
        """Delays of the updates, which follow from windows and rules, and the measured computing time."""
        compute = [sum(seconds) / max(1, len(seconds)) for seconds in self._compute_seconds]
        grid, frame = self._grid, self._grid.output_seconds
        loads = [seconds / (cutter.hop * frame) for seconds, cutter in zip(compute, self._cutters)]
        # A window is complete with the last spectrogram frame of its last output frame, and an output frame stands for
        # sound from before its first spectrogram frame.
        edge = self._overhang / grid.rate + frame - grid.frame_start(1)
        hop = max(cutter.hop for cutter in self._cutters)
        window = max(cutter.hop + cutter.grid.num_output_frames(cutter.size) for cutter in self._cutters)
        lookahead = self._rules.smooth // 2
        duration, gap = self._rules.min_duration_frames(grid) - 1, max(self._rules.min_gap_frames(grid), 1) - 1
        return Latency(
            start=round((hop + duration) * frame + edge, 3),
            certain=round((window + duration + lookahead) * frame + edge, 3),
            end=round((window + gap + lookahead) * frame + edge, 3),
            compute=sum(compute),
            load=sum(loads),
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(self, block: Any) -> list[Update]:
        """Processes the next block of audio and returns the new updates; each is reported once.

        A block is an array of any library, or a list, of any length: ``(samples,)``, or with a second axis of at most
        64 channels before or after, and the same number of channels in every block; floats in [-1, 1], or integers of
        8, 16 or 32 bits. Bytes are 16-bit little-endian samples of one channel.

        Raises:
            AudioError: the block is invalid. It is ignored, and the stream can be used further.
            StreamError: the stream is closed; a computation that fails closes it, too.
        """
        with self._lock:
            self._require_open()
            updates = self._collect(self._process(self._mono(block)))
        return self._notify(updates)

    def skip(self, seconds: float) -> list[Update]:
        """Marks a gap of lost audio: all events end before it, and new ones may start after it.

        Raises:
            StreamError: the stream is closed, or the duration is invalid.
        """
        with self._lock:
            self._require_open()
            if not 0 <= seconds < np.inf:
                raise StreamError(f"{seconds!r} seconds cannot be skipped: use a finite number of 0 or more.")
            updates = self._collect(self._flush())
            self._offset, self._earlier_peak = self.position + seconds, self.peak
            self._reset()
        return self._notify(updates)

    def close(self) -> list[Update]:
        """Scores the last, incomplete window and ends all events. A second call has no effect."""
        with self._lock:
            updates = [] if self._closed else self._collect(self._flush())
            self._closed = True
        return self._notify(updates)

    def _require_open(self) -> None:
        if self._closed:
            raise StreamError("the stream is closed: create a new one.")

    def _collect(self, updates: Iterator[Update]) -> list[Update]:
        """Computes all updates; an exception leaves the state inconsistent, so it closes the stream."""
        try:
            return list(updates)
        except BaseException:
            self._closed = True
            raise

    def _notify(self, updates: list[Update]) -> list[Update]:
        for update in updates:
            self._on_event(update)
        return updates

    def _mono(self, block: Any) -> np.ndarray:
        """Validates a block and converts it to one channel, float32 ``(samples,)``."""
        source = read_block(block)
        if source.rate not in (None, self._rate):
            raise AudioError(
                "the block", f"has the sample rate {source.rate!r}, the stream {self._rate!r}: resample it."
            )
        array, axis = source.channels_last(self._channel_axis)
        channels = array.shape[1] if array.ndim == 2 else 1
        if not 1 <= channels <= MAX_CHANNELS:
            raise AudioError("the block", f"has {channels} channels: give 1 to {MAX_CHANNELS}.")
        if self._channels not in (0, channels):
            raise AudioError(
                "the block", f"has {channels} channels, earlier blocks have {self._channels}: use the same number."
            )
        mono = decode.array_to_mono("the block", array, self._tagger.channel, self.reading)
        self._channels, self._channel_axis = channels, axis
        return mono

    def _process(self, mono: np.ndarray) -> Iterator[Update]:
        """Resamples a block, and scores the windows that it completes."""
        size = int(RESAMPLED_SECONDS * self._rate)
        for first in range(0, len(mono), size):
            piece = mono[first : first + size]
            self._pushed += len(piece)
            yield from self._advance(self._resampler.push(piece))

    def _advance(self, samples: np.ndarray) -> Iterator[Update]:
        """Processes resampled audio one output frame at a time, so that updates do not depend on block sizes."""
        self._buffer = np.concatenate([self._buffer, samples])
        while len(self._buffer) >= (size := self._grid.output_samples + (self._overhang if self._frames == 0 else 0)):
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            self._state.add_samples(piece)
            self._frames += 1
            if any([self._feed(number, piece) for number in range(len(self._cutters))]):
                yield from self._new_updates()

    def _feed(self, number: int, piece: np.ndarray) -> bool:
        """Passes the samples of one output frame to a model; returns whether the model scored a window."""
        cutter = self._cutters[number]
        windows = list(cutter.push(piece))
        for window in windows:
            self._add_window(number, window)
        incomplete = self._frames < cutter.size // self._grid.output_samples
        if self._early and not windows and incomplete and self._frames % cutter.hop == 0:
            # Before the first window is complete, score its beginning like a recording that ends here.
            window = cutter.partial()
            self._incomplete[number] = window, *self._score(number, window)
            self._scored_frames[number] = window.num_frames
            return True
        return bool(windows)

    def _score(self, number: int, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        began = time.perf_counter()
        scores = self._tagger.score_window(number, window)
        self._compute_seconds[number].append(time.perf_counter() - began)
        return scores

    def _add_window(self, number: int, window: Window) -> None:
        self._state.expect_window(number)
        self._state.add_window(number, window, *self._score(number, window), None)
        self._incomplete[number] = None
        self._scored_frames[number] = window.start + window.num_frames

    def _new_updates(self) -> Iterator[Update]:
        """Returns the updates after new windows have been scored."""
        finished, final = self._state.pop_finished(), self._state.final_frames
        if self._early:
            changes = self._tracker.update(finished, self._early_events(), final, min(self._scored_frames))
        else:
            shortest = self._rules.min_duration_frames(self._grid)
            active = [span for span in self._state.active_events() if span.stop - span.start >= shortest]
            changes = self._tracker.update(finished, active, final, final)
        return map(self._to_update, changes)

    def _early_events(self) -> list[Span]:
        """Returns the unfinished events as they would be if the audio ended here."""
        copy = self._state.copy()
        for number, scored in enumerate(self._incomplete):
            if scored is not None:
                copy.add_window(number, *scored, None)
        return copy.pop_remaining()

    def _flush(self) -> Iterator[Update]:
        """Scores the audio after the last complete window, and returns the updates that end all events."""
        yield from self._advance(self._resampler.finish())
        self._state.add_samples(self._buffer)
        if self._state.samples >= self._overhang + self._grid.hop:
            for number, cutter in enumerate(self._cutters):
                for window in [*cutter.push(self._buffer), *cutter.finish()]:
                    self._add_window(number, window)
        self._buffer = self._buffer[:0]
        yield from map(self._to_update, self._tracker.update(self._state.pop_remaining(), [], np.inf, self._frames))

    def _to_update(self, change: Change) -> Update:
        event = self._state.event(change.span)
        onset, offset = (round(self._offset + seconds, 3) for seconds in (event.onset, event.offset))
        position = round(self._offset + self._state.duration, 3)
        return Update(change.kind, change.id, replace(event, onset=onset, offset=offset), change.sounding, position)
