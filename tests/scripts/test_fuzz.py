"""Corrupted audio files are read or rejected by every part of the package, in bounded time and memory."""

from __future__ import annotations

import fuzz


def test_mutated_recordings_are_read_or_refused_by_everything(tmp_path) -> None:
    outcomes = {outcome.part: outcome for outcome in fuzz.fuzz(fuzz.Arguments(files=26, limit=240))}
    assert set(outcomes) == {"loader", "prepare folder", "check", "pack", "tag"}
    for outcome in outcomes.values():
        assert outcome.ok, outcome
        assert outcome.megabytes < 1200, outcome  # The ten hours of silence would take 2300 MB when loaded whole.
    assert 5 < outcomes["loader"].refused < 26
    # Unreadable files are reported before training. psla pack and psla tag reject more files than the loader.
    assert outcomes["check"].refused > 5  # Files with values that are not finite are reported separately.
    assert outcomes["pack"].refused > outcomes["loader"].refused
    assert outcomes["tag"].refused >= outcomes["loader"].refused
    assert outcomes["prepare folder"].refused > 0
