"""Turns repeatedly revised event estimates into changes: every event starts once, is updated, and ends once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from psla_jax.tagging.events import Span

Kind = Literal["start", "update", "end", "cancel"]
UPDATE_SCORE_RISE = 0.05
"""Rise of the score since the last reported change that causes an update."""
UPDATE_FRAMES = 16
"""Growth in output frames since the last reported change that causes an update: 5 s."""


@dataclass(frozen=True)
class Change:
    """A change of one event."""

    kind: Kind
    id: int
    """Number of the event, from 1."""
    span: Span
    """Current estimate of the event; final if `kind` is ``end``."""
    sounding: bool
    """Whether the event lasts until the newest output frame, or can still be continued from there."""


@dataclass
class _OpenEvent:
    """An event that has started and has not ended."""

    id: int
    span: Span
    reported: Span
    """Estimate in the last reported change."""
    sounding: bool


class EventTracker:
    """Matches new estimates of events with the events reported so far.

    A new estimate belongs to a reported event if both have the same class and overlap, or if the gap between them is
    too short for two events. Memory grows with the number of simultaneous events, not with time.
    """

    def __init__(self, gap: int) -> None:
        """`gap` is the minimum number of output frames between two events of a class."""
        self._gap = max(gap, 1)
        self._open: list[_OpenEvent] = []
        self._last_id = 0

    def update(self, finished: Sequence[Span], active: Sequence[Span], final: float, total: int) -> list[Change]:
        """Returns the changes from the reported events: ends, then starts and updates, then cancellations.

        An event is cancelled if all its output frames are final and no new estimate matches it.

        Args:
            finished: events that have ended since the last update.
            active: current estimates of all other events.
            final: number of leading output frames whose scores are final, so that no other events can appear in them;
                infinity at the end of the audio.
            total: number of output frames so far.
        """
        matches = self._match([*finished, *active])
        matched, changes = {id(event) for event in matches.values()}, list[Change]()
        for number, span in enumerate(finished):
            event = matches.get(number) or self._start(span, False, changes)
            changes.append(Change("end", event.id, span, False))
            self._open.remove(event)
        for number, span in enumerate(active, len(finished)):
            sounding = total - span.stop < self._gap
            if number in matches:
                self._revise(matches[number], span, sounding, changes)
            else:
                matched.add(id(self._start(span, sounding, changes)))
        for event in [event for event in self._open if id(event) not in matched]:
            if event.span.stop <= final:
                changes.append(Change("cancel", event.id, event.span, False))
                self._open.remove(event)
            else:
                self._revise(event, event.span, False, changes)
        return changes

    def _match(self, spans: Sequence[Span]) -> dict[int, _OpenEvent]:
        """Returns the open event of each span, by index of the span; pairs with the largest overlap come first."""
        pairs = [
            (max(event.span.start, span.start) - min(event.span.stop, span.stop), position, number)
            for (position, event), (number, span) in itertools.product(enumerate(self._open), enumerate(spans))
            if event.span.column == span.column
        ]
        matches, used = dict[int, _OpenEvent](), set[int]()
        for distance, position, number in sorted(pairs):
            if distance < self._gap and position not in used and number not in matches:
                matches[number] = self._open[position]
                used.add(position)
        return matches

    def _start(self, span: Span, sounding: bool, changes: list[Change]) -> _OpenEvent:
        self._last_id += 1
        event = _OpenEvent(self._last_id, span, span, sounding)
        self._open.append(event)
        changes.append(Change("start", event.id, span, sounding))
        return event

    def _revise(self, event: _OpenEvent, span: Span, sounding: bool, changes: list[Change]) -> None:
        """Replaces the estimate of an event, and appends an update if it differs enough from the reported one."""
        higher = span.score - event.reported.score >= UPDATE_SCORE_RISE
        longer = span.stop - event.reported.stop >= UPDATE_FRAMES
        event.span = span
        if higher or longer or sounding != event.sounding:
            event.reported, event.sounding = span, sounding
            changes.append(Change("update", event.id, span, sounding))
