"""What a listener has been told of events: each begins, grows and ends once, however often what is known is revised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from psla_jax.tagging.events import Span

Kind = Literal["start", "update", "end", "cancel"]
SCORE_RISE = 0.05
"""A score that has risen by so much since it was told is told again."""
STEPS_LONGER = 16
"""So is an event that has grown by so many steps: 5 s."""


@dataclass(frozen=True)
class Change:
    """What is to be told of one event."""

    kind: Kind
    id: int
    """Of the event; counted from 1."""
    span: Span
    """The event as it is known now; for good if it ends."""
    sounding: bool
    """Whether it lasts until the newest step, or may still be continued from it."""


@dataclass
class _Told:
    """An event that has begun for the listener and has not ended."""

    id: int
    span: Span
    told: Span
    sounding: bool


class Ledger:
    """Compares what is known of events with what was told of them.

    An event that was told and one that is found later are the same if they are of one class and overlap, or are
    nearer to each other than two events can be. Memory grows with the events at one moment, not with time.
    """

    def __init__(self, gap: int) -> None:
        """`gap` is the number of steps that two events of a class have between them at least."""
        self._near = max(gap, 1)
        self._open: list[_Told] = []
        self._last = 0

    def revise(self, over: Sequence[Span], now: Sequence[Span], certain: float, newest: int) -> list[Change]:
        """What is to be told after events were found anew.

        Args:
            over: events that have ended for good since the last time.
            now: all others, as they are known now.
            certain: how many steps are known for good: in those there are no other events than these.
            newest: how many steps there are.

        Returns:
            The ends, then starts and updates, then what is taken back: an event that was told too early, and that is
            not found again once all of its steps are certain.
        """
        same = self._same([*over, *now])
        known, changes = set(map(id, same.values())), list[Change]()
        for number, span in enumerate(over):
            event = same.get(number) or self._begin(span, False, changes)
            changes.append(Change("end", event.id, span, False))
            self._open.remove(event)
        for number, span in enumerate(now, len(over)):
            sounding = newest - span.stop < self._near
            if number in same:
                self._grow(same[number], span, sounding, changes)
            else:
                known.add(id(self._begin(span, sounding, changes)))
        for event in [event for event in self._open if id(event) not in known]:
            if event.span.stop <= certain:
                changes.append(Change("cancel", event.id, event.span, False))
                self._open.remove(event)
            else:
                self._grow(event, event.span, False, changes)
        return changes

    def _same(self, spans: Sequence[Span]) -> dict[int, _Told]:
        """From the number of a span to what was told of it; those that overlap most find each other first."""
        pairs = []
        for place, event in enumerate(self._open):
            for number, span in enumerate(spans):
                overlap = min(event.span.stop, span.stop) - max(event.span.start, span.start)
                if event.span.column == span.column and overlap > -self._near:
                    pairs.append((-overlap, place, number))
        same: dict[int, _Told] = {}
        taken: set[int] = set()
        for _, place, number in sorted(pairs):
            if place not in taken and number not in same:
                same[number] = self._open[place]
                taken.add(place)
        return same

    def _begin(self, span: Span, sounding: bool, changes: list[Change]) -> _Told:
        self._last += 1
        event = _Told(self._last, span, span, sounding)
        self._open.append(event)
        changes.append(Change("start", event.id, span, sounding))
        return event

    def _grow(self, event: _Told, span: Span, sounding: bool, changes: list[Change]) -> None:
        """Notes what an event is now, and tells it if it differs enough from what was told."""
        louder = span.score - event.told.score >= SCORE_RISE
        longer = span.stop - event.told.stop >= STEPS_LONGER
        event.span = span
        if louder or longer or sounding != event.sounding:
            event.told, event.sounding = span, sounding
            changes.append(Change("update", event.id, span, sounding))
