"""Changes reported for events that are revised, split, merged or not confirmed."""

from __future__ import annotations

import pytest

from psla_jax.tagging.events import Span
from psla_jax.tagging.live.event_tracker import EventTracker


def summary(changes) -> list[tuple[str, int, int, int]]:
    return [(c.kind, c.id, c.span.start, c.span.stop) for c in changes]


def test_an_event_from_its_start_to_its_end():
    tracker = EventTracker(2)
    assert summary(tracker.update([], [Span(3, 0, 4, 0.5)], 0, 4)) == [("start", 1, 3, 4)]
    assert tracker.update([], [Span(3, 0, 5, 0.54)], 1, 5) == [], "too small a change to report"
    assert summary(tracker.update([], [Span(2, 0, 6, 0.55)], 2, 6)) == [("update", 1, 2, 6)]
    assert tracker.update([], [Span(2, 0, 21, 0.5)], 9, 21) == []
    assert summary(tracker.update([], [Span(2, 0, 22, 0.5)], 9, 22)) == [("update", 1, 2, 22)]
    assert summary(tracker.update([Span(2, 0, 22, 0.5)], [], 24, 30)) == [("end", 1, 2, 22)]
    assert tracker.update([], [], 40, 50) == []


def test_an_event_that_was_never_active_starts_and_ends_at_once():
    changes = EventTracker(2).update([Span(0, 1, 2, 0.9)], [Span(1, 0, 9, 0.9)], 5, 9)
    assert summary(changes) == [("start", 1, 0, 2), ("end", 1, 0, 2), ("start", 2, 1, 9)]
    assert [c.sounding for c in changes] == [False, False, True]


def test_an_event_sounds_until_no_other_can_continue_it():
    tracker = EventTracker(2)
    assert [c.sounding for c in tracker.update([], [Span(0, 0, 4, 0.5)], 0, 5)] == [True]
    (change,) = tracker.update([], [Span(0, 0, 4, 0.5)], 0, 6)
    assert (change.kind, change.sounding) == ("update", False)
    (change,) = tracker.update([], [Span(0, 0, 7, 0.5)], 0, 7)
    assert (change.kind, change.sounding) == ("update", True)


def test_an_unconfirmed_event_is_cancelled_once_its_frames_are_final():
    tracker = EventTracker(2)
    tracker.update([], [Span(3, 0, 6, 0.5)], 0, 6)
    (change,) = tracker.update([], [], 5, 7)
    assert (change.kind, change.sounding) == ("update", False)
    assert tracker.update([], [], 5, 8) == []
    assert summary(tracker.update([], [], 6, 9)) == [("cancel", 1, 3, 6)]
    assert tracker.update([], [], 9, 9) == []


def test_an_event_may_reappear():
    tracker = EventTracker(2)
    tracker.update([], [Span(3, 0, 6, 0.5)], 0, 6)
    tracker.update([], [], 2, 7)
    assert summary(tracker.update([], [Span(4, 0, 8, 0.5)], 3, 8)) == [("update", 1, 4, 8)]


@pytest.mark.parametrize(
    ("span", "same"),
    [(Span(7, 0, 9, 0.5), True), (Span(8, 0, 9, 0.5), False), (Span(1, 0, 2, 0.5), True), (Span(3, 1, 6, 0.5), False)],
)
def test_events_of_a_class_match_if_their_gap_is_too_short_for_two_events(span, same):
    tracker = EventTracker(2)
    tracker.update([], [Span(3, 0, 6, 0.5)], 0, 6)
    assert (tracker.update([span], [], 0, 9)[0].kind == "end") == same


def test_two_that_become_one_and_one_that_becomes_two():
    tracker = EventTracker(2)
    tracker.update([], [Span(0, 0, 3, 0.5), Span(5, 0, 12, 0.5)], 0, 12)
    assert summary(tracker.update([], [Span(0, 0, 13, 0.6)], 0, 13)) == [("update", 2, 0, 13)]
    changes = summary(tracker.update([Span(0, 0, 4, 0.6)], [Span(6, 0, 14, 0.6)], 7, 14))
    assert changes == [("end", 1, 0, 4)], "each part keeps the id of the event that it overlaps most"
