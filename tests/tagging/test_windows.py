"""Windows against slices of the whole recording, and joined values against a loop over every output frame."""

from __future__ import annotations

from itertools import pairwise

import jax
import numpy as np
import pytest
from flax import nnx
from tolerance import assert_close

from psla_jax.audio.windows import Grid, WindowError
from psla_jax.config import FrontendConfig
from psla_jax.models.factory import build_model
from psla_jax.tagging.windows import Cutter, OverlapAverage

GRID = Grid()
OUTPUT_FRAME_SAMPLES = 32 * 160
SIZE = 3 * OUTPUT_FRAME_SAMPLES + 240


def blocks(samples: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return np.split(samples, np.sort(rng.integers(0, len(samples) + 1, 5)))


def cut(samples: np.ndarray, hop: int, rng: np.random.Generator) -> list:
    cutter = Cutter(SIZE, hop)
    return [window for block in blocks(samples, rng) for window in cutter.push(block)] + list(cutter.finish())


@pytest.mark.parametrize("hop", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 400, SIZE - 1, SIZE, SIZE + 1, SIZE + OUTPUT_FRAME_SAMPLES, 50_000, 123_457])
def test_windows_are_slices_that_cover_the_recording(hop, length):
    rng = np.random.default_rng(length)
    samples = rng.normal(size=length).astype(np.float32)
    windows = cut(samples, hop, rng)
    covered = np.zeros(length, bool)
    for window in windows:
        start = window.start * OUTPUT_FRAME_SAMPLES
        np.testing.assert_array_equal(window.samples, samples[start : start + SIZE])
        covered[start : start + SIZE] = True
    assert covered.all()
    starts = [window.start for window in windows]
    assert starts == GRID.window_starts(length, SIZE, hop)
    assert starts[0] == 0
    assert starts[:-1] == [hop * i for i in range(len(starts) - 1)]
    assert all(0 < b - a <= hop for a, b in pairwise(starts))
    # Only a recording shorter than a window gives a window that lacks an output frame or more.
    assert len(windows) == 1 or all(len(window.samples) > SIZE - OUTPUT_FRAME_SAMPLES for window in windows)
    assert (len(windows) == 1) == (length <= SIZE)


def test_an_empty_recording_has_no_window():
    cutter = Cutter(SIZE, 1)
    assert [*cutter.push(np.zeros(0, np.float32)), *cutter.finish()] == []


@pytest.mark.parametrize(
    ("samples", "frames"), [(1, 1), (399, 1), (400, 1), (5360, 1), (5519, 1), (5520, 2), (160_000, 32), (169_200, 33)]
)
def test_output_frames_cover_all_complete_spectrogram_frames(samples, frames):
    assert GRID.num_output_frames(samples) == frames


@pytest.mark.parametrize("samples", [1, 400, 5519, 5520, 160_000, 169_200])
def test_twice_the_sample_rate_has_the_same_frames_at_the_same_times(samples):
    double = Grid.of(FrontendConfig(sample_rate=32_000))
    assert (double.hop, double.window, double.output_seconds) == (320, 800, GRID.output_seconds)
    assert double.num_output_frames(2 * samples) == GRID.num_output_frames(samples)
    assert [double.frame_start(frame) for frame in range(9)] == [GRID.frame_start(frame) for frame in range(9)]
    starts = GRID.window_starts(samples, SIZE, 2)
    assert double.window_starts(2 * samples, 2 * SIZE, 2) == starts
    cutter = Cutter(2 * SIZE, 2, double)
    windows = [*cutter.push(np.zeros(2 * samples, np.float32)), *cutter.finish()]
    assert [window.start for window in windows] == starts
    assert sum(window.num_frames for window in windows[-1:]) == GRID.num_output_frames(len(windows[-1].samples) // 2)


def test_the_hop_determines_the_output_frames():
    grid = Grid.of(FrontendConfig(sample_rate=32_000, hop=12.5, window=32))
    assert (grid.output_samples, grid.output_seconds) == (12_800, 0.4)
    assert [grid.frame_start(frame) for frame in (0, 1, 2)] == pytest.approx([0, 0.216, 0.616])


@pytest.mark.parametrize(("overlap", "hop"), [(0.0, 33), (0.5, 16), (0.9, 3), (0.95, 2)])
def test_hops_are_whole_output_frames(overlap, hop):
    assert GRID.hop_frames(169_200, overlap) == hop


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_invalid_overlap_is_named(overlap):
    with pytest.raises(WindowError, match="overlap is"):
        GRID.hop_frames(169_200, overlap)


def test_windows_shorter_than_an_output_frame_are_refused():
    with pytest.raises(WindowError, match="at least 34 frames"):
        Cutter(OUTPUT_FRAME_SAMPLES - 1, 1)


def brute_force(windows: list[tuple[int, np.ndarray]], size: int) -> np.ndarray:
    joined = []
    for frame in range(max(start + len(values) for start, values in windows)):
        total, total_weight = 0.0, 0.0
        for start, values in windows:
            if start <= frame < start + len(values):
                position = frame - start
                weight = min(position + 1, size - position)
                total, total_weight = total + weight * values[position].astype(np.float64), total_weight + weight
        joined.append(total / total_weight)
    return np.array(joined)


@pytest.mark.parametrize("starts", [[0], [0, 2, 4, 5], [0, 4, 8], [0, 1, 2, 3, 4], [0, 4, 5]])
@pytest.mark.parametrize("last", [1, 3, 4])
def test_joined_frames_are_the_weighted_mean_of_their_windows(starts, last):
    rng = np.random.default_rng(0)
    windows = [(start, rng.random((4, 3), np.float32)) for start in starts]
    windows[-1] = (windows[-1][0], windows[-1][1][: max(last, starts[-2] + 4 - starts[-1] if starts[1:] else 1)])
    average, blocks = OverlapAverage(), []
    for start, values in windows:
        blocks.append(average.push(start, values, 4))
        assert sum(map(len, blocks)) == start
    blocks.append(average.finish())
    assert_close(np.concatenate([block for block in blocks if len(block)]), brute_force(windows, 4), 1e-6)


def test_an_output_frame_is_centred_on_the_sound_that_it_represents():
    """The centre of the squared gradient with respect to the input is the middle of the output frame's interval."""
    backbone = build_model("efficientnet-tiny", num_classes=2, rngs=nnx.Rngs(0)).backbone
    rng = np.random.default_rng(0)
    features, back = jax.vjp(nnx.jit(backbone), rng.normal(size=(1, 320, 128)).astype(np.float32))
    for frame in (4, 5):
        sensitivity = np.zeros(320)
        for _ in range(8):
            cotangent = np.zeros(features.shape, np.float32)
            cotangent[0, frame] = rng.normal(size=features.shape[-1])
            sensitivity += np.square(np.asarray(back(cotangent)[0])[0]).sum(axis=1)
        centre = (sensitivity * np.arange(320)).sum() / sensitivity.sum() * 0.01 + 0.0125
        assert (GRID.frame_start(frame) + GRID.frame_start(frame + 1)) / 2 == pytest.approx(centre, abs=0.06)
    assert [GRID.frame_start(frame) for frame in (0, 1)] == pytest.approx([0.0, 0.1725])
