"""Events found block by block, against a search through the whole timeline."""

from __future__ import annotations

import numpy as np
import pytest

from psla_jax.tagging.events import EventError, EventFinder, Rules, RunningMedian, Span, find_events


def brute_force(scores: np.ndarray, rules: Rules) -> list[Span]:
    """Implements the definition: median, runs at the release level that reach the threshold, gaps, durations."""
    half = rules.smooth // 2
    padded = np.pad(scores, ((half, half), (0, 0)), mode="edge")
    smooth = np.array([np.median(padded[i : i + rules.smooth], axis=0) for i in range(len(scores))], np.float32)
    thresholds = np.broadcast_to(np.asarray(rules.with_threshold().threshold, np.float32), scores.shape[1:])
    spans = []
    for column in range(scores.shape[1]):
        row, threshold, runs, i = smooth[:, column], thresholds[column], [], 0
        while i < len(row):
            j = i
            while j < len(row) and row[j] >= threshold * np.float32(rules.release):
                j += 1
            if j > i and row[i:j].max() >= threshold:
                runs.append([i, j])
            i = max(j, i + 1)
        merged: list[list[int]] = []
        for run in runs:
            if merged and (run[0] - merged[-1][1]) * 0.32 < rules.min_gap - 1e-9:
                merged[-1][1] = run[1]
            else:
                merged.append(run)
        spans += [
            Span(a, column, b, float(max(row[i:j].max() for i, j in runs if a <= i < b)))
            for a, b in merged
            if (b - a) * 0.32 >= rules.min_duration - 1e-9
        ]
    return sorted(spans)


def noisy(seed: int, frames: int = 120, columns: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.15, (frames, columns)), axis=0)
    return (1 / (1 + np.exp(-drift - rng.normal(0, 0.7, (frames, columns))))).astype(np.float32)


RULES = [
    Rules(),
    Rules(threshold=0.6, release=1.0, smooth=1, min_gap=0.0, min_duration=0.0),
    Rules(threshold=0.5, release=0.8, smooth=1, min_gap=1.0, min_duration=0.0),
    Rules(threshold=0.5, release=0.9, smooth=5, min_gap=0.64, min_duration=1.28),
    Rules(threshold=np.array([0.2, 0.4, 0.6, 0.8, 0.95]), release=0.7, smooth=3, min_gap=0.33, min_duration=0.65),
]


@pytest.mark.parametrize("rules", RULES, ids=range(len(RULES)))
@pytest.mark.parametrize("seed", range(6))
def test_events_are_those_of_the_definition_however_the_blocks_are_cut(rules, seed):
    scores = noisy(seed)
    expected = brute_force(scores, rules)
    assert find_events(scores, rules) == expected
    rng = np.random.default_rng(seed)
    finder, spans = EventFinder(rules, scores.shape[1]), []
    for block in np.split(scores, np.sort(rng.integers(0, len(scores) + 1, 9))):
        spans += finder.push(block)
    assert sorted(spans + finder.finish()) == expected
    assert sum(len(brute_force(noisy(s), rules)) for s in range(6)) > 10, "the rules find nothing to compare"


def test_an_event_is_returned_once_no_later_frame_can_extend_it():
    finder = EventFinder(Rules(threshold=0.5, release=1.0, smooth=1, min_gap=0.64, min_duration=0.32), 1)
    returned = [finder.push(np.array([[score]], np.float32)) for score in (0, 1, 1, 0, 1, 0, 0, 0)]
    assert returned == [[], [], [], [], [], [], [Span(1, 0, 5, 1.0)], []]
    assert finder.finish() == []


def test_active_events_are_available_before_they_end():
    finder = EventFinder(Rules(threshold=0.5, release=0.5, smooth=1, min_gap=0.64), 2)
    finder.push(np.array([[0.3, 0.0], [0.4, 0.0]], np.float32))
    assert finder.active() == [], "the release level alone starts no event"
    finder.push(np.array([[0.75, 0.0]], np.float32))
    assert finder.active() == [Span(0, 0, 3, 0.75)]
    finder.push(np.array([[0.0, 0.0]], np.float32))
    assert finder.active() == [Span(0, 0, 3, 0.75)], "it may still be extended"
    finder.push(np.array([[0.625, 0.0]], np.float32))
    assert finder.active() == [Span(0, 0, 5, 0.75)]
    assert finder.finish() == [Span(0, 0, 5, 0.75)]


@pytest.mark.parametrize("width", [1, 3, 5, 7])
@pytest.mark.parametrize("frames", [1, 2, 3, 20])
def test_the_running_median(width, frames):
    scores = noisy(3, frames, 2)
    padded = np.pad(scores, ((width // 2, width // 2), (0, 0)), mode="edge")
    expected = [np.median(padded[i : i + width], axis=0) for i in range(frames)]
    median = RunningMedian(width)
    blocks = [median.push(row[None]) for row in scores]
    assert sum(map(len, blocks)) == max(0, frames - width // 2)
    last = median.finish()
    np.testing.assert_array_equal(np.concatenate([*blocks, last] if len(last) else blocks), expected)


BAD = {
    "threshold": (0.0, -1.0, float("nan"), np.array([0.5, 0.0])),
    "release": (0.0, 1.5),
    "smooth": (0, 2),
    "min_gap": (-1.0, float("inf")),
    "min_duration": (-0.1, float("nan")),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_invalid_rules_are_named(name, value):
    with pytest.raises(EventError, match=f"^{name} is"):
        Rules(**{name: value})
