"""Recordings as no recorder writes them, through everything that reads recordings: nothing crashes, hangs or swells."""

from __future__ import annotations

import fuzz


def test_mutated_recordings_are_read_or_refused_by_everything(tmp_path) -> None:
    outcomes = {outcome.part: outcome for outcome in fuzz.fuzz(fuzz.Arguments(files=26, limit=240))}
    assert set(outcomes) == {"loader", "prepare folder", "check", "pack", "tag"}
    for outcome in outcomes.values():
        assert outcome.well, outcome
        assert outcome.megabytes < 1200, outcome  # The ten hours of silence alone would be 2300.
    assert 5 < outcomes["loader"].refused < 26
    # Whatever cannot be read is told before training; what writes clips wants more of them than what reads them.
    assert outcomes["check"].refused > 5  # besides those that hold what is no number
    assert outcomes["pack"].refused > outcomes["loader"].refused
    assert outcomes["tag"].refused >= outcomes["loader"].refused
    assert outcomes["prepare folder"].refused > 0
