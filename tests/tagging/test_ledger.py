"""What is told of events that are found again, change, part and come to nothing."""

from __future__ import annotations

import pytest

from psla_jax.tagging.events import Span
from psla_jax.tagging.ledger import Ledger


def told(changes) -> list[tuple[str, int, int, int]]:
    return [(c.kind, c.id, c.span.start, c.span.stop) for c in changes]


def test_an_event_from_its_start_to_its_end():
    ledger = Ledger(2)
    assert told(ledger.revise([], [Span(3, 0, 4, 0.5)], 0, 4)) == [("start", 1, 3, 4)]
    assert ledger.revise([], [Span(3, 0, 5, 0.54)], 1, 5) == [], "too little to tell"
    assert told(ledger.revise([], [Span(2, 0, 6, 0.55)], 2, 6)) == [("update", 1, 2, 6)]
    assert ledger.revise([], [Span(2, 0, 21, 0.5)], 9, 21) == []
    assert told(ledger.revise([], [Span(2, 0, 22, 0.5)], 9, 22)) == [("update", 1, 2, 22)]
    assert told(ledger.revise([Span(2, 0, 22, 0.5)], [], 24, 30)) == [("end", 1, 2, 22)]
    assert ledger.revise([], [], 40, 50) == []


def test_one_that_nobody_was_told_of_starts_and_ends_at_once():
    changes = Ledger(2).revise([Span(0, 1, 2, 0.9)], [Span(1, 0, 9, 0.9)], 5, 9)
    assert told(changes) == [("start", 1, 0, 2), ("end", 1, 0, 2), ("start", 2, 1, 9)]
    assert [c.sounding for c in changes] == [False, False, True]


def test_it_sounds_until_nothing_can_join_it():
    ledger = Ledger(2)
    assert [c.sounding for c in ledger.revise([], [Span(0, 0, 4, 0.5)], 0, 5)] == [True]
    (change,) = ledger.revise([], [Span(0, 0, 4, 0.5)], 0, 6)
    assert (change.kind, change.sounding) == ("update", False)
    (change,) = ledger.revise([], [Span(0, 0, 7, 0.5)], 0, 7)
    assert (change.kind, change.sounding) == ("update", True)


def test_what_is_not_found_again_is_taken_back_once_that_is_certain():
    ledger = Ledger(2)
    ledger.revise([], [Span(3, 0, 6, 0.5)], 0, 6)
    (change,) = ledger.revise([], [], 5, 7)
    assert (change.kind, change.sounding) == ("update", False)
    assert ledger.revise([], [], 5, 8) == []
    assert told(ledger.revise([], [], 6, 9)) == [("cancel", 1, 3, 6)]
    assert ledger.revise([], [], 9, 9) == []


def test_it_may_be_found_again():
    ledger = Ledger(2)
    ledger.revise([], [Span(3, 0, 6, 0.5)], 0, 6)
    ledger.revise([], [], 2, 7)
    assert told(ledger.revise([], [Span(4, 0, 8, 0.5)], 3, 8)) == [("update", 1, 4, 8)]


@pytest.mark.parametrize(
    ("found", "same"),
    [(Span(7, 0, 9, 0.5), True), (Span(8, 0, 9, 0.5), False), (Span(1, 0, 2, 0.5), True), (Span(3, 1, 6, 0.5), False)],
)
def test_events_of_a_class_are_the_same_if_they_are_nearer_than_two_can_be(found, same):
    ledger = Ledger(2)
    ledger.revise([], [Span(3, 0, 6, 0.5)], 0, 6)
    assert (ledger.revise([found], [], 0, 9)[0].kind == "end") == same


def test_two_that_become_one_and_one_that_becomes_two():
    ledger = Ledger(2)
    ledger.revise([], [Span(0, 0, 3, 0.5), Span(5, 0, 12, 0.5)], 0, 12)
    assert told(ledger.revise([], [Span(0, 0, 13, 0.6)], 0, 13)) == [("update", 2, 0, 13)]
    changes = told(ledger.revise([Span(0, 0, 4, 0.6)], [Span(6, 0, 14, 0.6)], 7, 14))
    assert changes == [("end", 1, 0, 4)], "the longer part keeps its name, the other takes that of its place"
