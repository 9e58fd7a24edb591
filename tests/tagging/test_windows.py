"""Windows against slices of the whole recording, and joined values against a loop over every step."""

from __future__ import annotations

from itertools import pairwise

import jax
import numpy as np
import pytest
from flax import nnx

from psla_jax.models.tagger import build_model
from psla_jax.tagging.windows import STEP_SAMPLES, Cutter, Joiner, WindowError, beginning_of, hop_of, steps_of

SIZE = 3 * STEP_SAMPLES + 240


def blocks(samples: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return np.split(samples, np.sort(rng.integers(0, len(samples) + 1, 5)))


def cut(samples: np.ndarray, hop: int, rng: np.random.Generator) -> list:
    cutter = Cutter(SIZE, hop)
    return [window for block in blocks(samples, rng) for window in cutter.push(block)] + list(cutter.finish())


@pytest.mark.parametrize("hop", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 400, SIZE - 1, SIZE, SIZE + 1, SIZE + STEP_SAMPLES, 50_000, 123_457])
def test_windows_are_slices_that_cover_the_recording(hop, length):
    rng = np.random.default_rng(length)
    samples = rng.normal(size=length).astype(np.float32)
    windows = cut(samples, hop, rng)
    covered = np.zeros(length, bool)
    for window in windows:
        start = window.start * STEP_SAMPLES
        np.testing.assert_array_equal(window.samples, samples[start : start + SIZE])
        covered[start : start + SIZE] = True
    assert covered.all()
    starts = [window.start for window in windows]
    assert starts[0] == 0
    assert starts[:-1] == [hop * i for i in range(len(starts) - 1)]
    assert all(0 < b - a <= hop for a, b in pairwise(starts))
    # Only a recording shorter than a window gives a window that lacks more than a part of a step.
    assert len(windows) == 1 or all(len(window.samples) > SIZE - STEP_SAMPLES for window in windows)
    assert (len(windows) == 1) == (length <= SIZE)


def test_nothing_gives_no_window():
    cutter = Cutter(SIZE, 1)
    assert [*cutter.push(np.zeros(0, np.float32)), *cutter.finish()] == []


@pytest.mark.parametrize(
    ("samples", "steps"), [(1, 1), (399, 1), (400, 1), (5360, 1), (5519, 1), (5520, 2), (160_000, 32), (169_200, 33)]
)
def test_steps_reach_as_far_as_whole_frames(samples, steps):
    assert steps_of(samples) == steps


@pytest.mark.parametrize(("overlap", "hop"), [(0.0, 33), (0.5, 16), (0.9, 3), (0.95, 2)])
def test_hops_are_whole_steps(overlap, hop):
    assert hop_of(169_200, overlap) == hop


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_cannot_be_is_named(overlap):
    with pytest.raises(WindowError, match="overlap of windows is"):
        hop_of(169_200, overlap)


def test_windows_shorter_than_a_step_are_refused():
    with pytest.raises(WindowError, match="at least 34 frames"):
        Cutter(STEP_SAMPLES - 1, 1)


def brute_force(windows: list[tuple[int, np.ndarray]], size: int) -> np.ndarray:
    steps = max(start + len(values) for start, values in windows)
    joined = []
    for step in range(steps):
        over, under = 0.0, 0.0
        for start, values in windows:
            if start <= step < start + len(values):
                place = step - start
                weight = min(place + 1, size - place)
                over, under = over + weight * values[place].astype(np.float64), under + weight
        joined.append(over / under)
    return np.array(joined)


@pytest.mark.parametrize("starts", [[0], [0, 2, 4, 5], [0, 4, 8], [0, 1, 2, 3, 4], [0, 4, 5]])
@pytest.mark.parametrize("last", [1, 3, 4])
def test_joined_steps_are_the_weighted_mean_of_their_windows(starts, last):
    rng = np.random.default_rng(0)
    windows = [(start, rng.random((4, 3), np.float32)) for start in starts]
    windows[-1] = (windows[-1][0], windows[-1][1][: max(last, starts[-2] + 4 - starts[-1] if starts[1:] else 1)])
    joiner, found = Joiner(), []
    for start, values in windows:
        found.append(joiner.push(start, values, 4))
        assert sum(map(len, found)) == start
    found.append(joiner.finish())
    joined = np.concatenate([block for block in found if len(block)])
    np.testing.assert_allclose(joined, brute_force(windows, 4), rtol=1e-6)


def test_a_step_hears_the_sound_it_stands_for_on_both_sides_alike():
    backbone = build_model("efficientnet-tiny", num_classes=2, rngs=nnx.Rngs(0)).backbone
    rng = np.random.default_rng(0)
    features, back = jax.vjp(nnx.jit(backbone), rng.normal(size=(1, 320, 128)).astype(np.float32))
    for step in (4, 5):
        heard = np.zeros(320)
        for _ in range(8):
            chosen = np.zeros(features.shape, np.float32)
            chosen[0, step] = rng.normal(size=features.shape[-1])
            heard += np.square(np.asarray(back(chosen)[0])[0]).sum(axis=1)
        middle = (heard * np.arange(320)).sum() / heard.sum() * 0.01 + 0.0125
        assert (beginning_of(step) + beginning_of(step + 1)) / 2 == pytest.approx(middle, abs=0.06)
    assert [beginning_of(step) for step in (0, 1)] == pytest.approx([0.0, 0.1725])
