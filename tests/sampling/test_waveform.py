"""Steps on waveforms: measured effects, pure functions of the generator, and unreadable clips."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from psla_jax.sampling import waveform
from psla_jax.sampling.mixup import draw_mix, mix_waveforms
from psla_jax.sampling.waveform import Example

RATE, CLASSES, DRAWS = 16_000, 4, 300


def example(number: int, samples: int = 1600) -> Example:
    rng = np.random.default_rng(number)
    wave = rng.normal(0, 0.1, samples).astype(np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[number % CLASSES]
    targets = {"labels": labels, "teacher": rng.random(CLASSES).astype(np.float32)}
    for array in (wave, *targets.values()):
        array.flags.writeable = False  # No step modifies its input.
    return Example(wave, targets)


class Examples(list):
    """Clips in memory; those that are None cannot be read."""


CLIPS = Examples(example(number, 1000 + 150 * number) for number in range(8))
NOISES = Examples([example(90, 700), example(91, 5000)])
ONE = example(3)


def opened(path: str) -> Examples:
    return {"noises.json": NOISES, "silent.json": Examples([Example(np.zeros(5, np.float32), {})])}[path]


STEPS: dict[str, Callable[..., Example]] = {
    "mixup": functools.partial(waveform.mixup, clips=CLIPS, mixup=1.0),
    "mixup of five": functools.partial(waveform.mixup, clips=CLIPS, mixup=1.0, most=5, union=True),
    "gain": waveform.gain,
    "roll": functools.partial(waveform.roll, sample_rate=RATE),
    "crop": functools.partial(waveform.crop, num_samples=400),
    "background": functools.partial(waveform.background, open_clips=opened, datafile="noises.json", rate=1.0),
}


def draws(step: Callable[..., Example]) -> list[Example]:
    return [step(ONE, np.random.default_rng(seed)) for seed in range(DRAWS)]


def test_every_registered_step_is_tested_here():
    assert {name.partition(" ")[0] for name in STEPS} == set(waveform.WAVEFORM_STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_function_of_the_generator(name: str):
    """Its input cannot be written to, and global random state is not used."""
    step = STEPS[name]
    results = []
    for seed in (5, 5, 6):
        np.random.seed(len(results))
        results.append(step(ONE, np.random.default_rng(seed)))
    np.testing.assert_array_equal(results[0].waveform, results[1].waveform)
    assert not np.array_equal(results[0].waveform, results[2].waveform)
    assert {result.waveform.dtype for result in results} == {np.dtype(np.float32)}
    assert {target.dtype for result in results for target in result.targets.values()} == {np.dtype(np.float32)}
    assert {result.failed for result in results} == {-1}


def test_the_gain_is_uniform_in_decibels():
    step = functools.partial(waveform.gain, decibels=12)
    gains = np.array([20 * np.log10(np.linalg.norm(r.waveform) / np.linalg.norm(ONE.waveform)) for r in draws(step)])
    assert -12.001 < gains.min() < -11
    assert 11 < gains.max() < 12.001
    assert abs(gains.mean()) < 5 * 12 / np.sqrt(3 * DRAWS)
    ratios = draws(step)[0].waveform / ONE.waveform
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


def test_a_roll_is_circular_and_at_most_as_long_as_said():
    shifts = set()
    for result in draws(functools.partial(waveform.roll, sample_rate=RATE, seconds=0.001)):
        shift = int(np.flatnonzero(result.waveform == ONE.waveform[0])[0])
        np.testing.assert_array_equal(result.waveform, np.roll(ONE.waveform, shift))
        shifts.add((shift + 800) % 1600 - 800)
    assert shifts == set(range(-16, 17))


def test_a_crop_is_any_part_of_a_longer_clip():
    starts = set()
    for result in draws(functools.partial(waveform.crop, num_samples=1590)):
        start = int(np.flatnonzero(ONE.waveform == result.waveform[0])[0])
        np.testing.assert_array_equal(result.waveform, ONE.waveform[start : start + 1590])
        starts.add(start)
    assert starts == set(range(11))
    assert waveform.crop(ONE, np.random.default_rng(0), 1600) is ONE


def test_the_background_has_the_ratio_drawn_and_comes_from_anywhere_in_any_noise():
    step = functools.partial(STEPS["background"], snr=(3, 9))
    ratios, sources, starts = [], set(), set()
    for result in draws(step):
        added = np.float64(result.waveform) - ONE.waveform
        ratios.append(10 * np.log10(np.mean(np.square(ONE.waveform)) / np.mean(np.square(added))))
        # It is a noise, repeated, from some position on.
        scores = []
        for number, noise in enumerate(NOISES):
            long = np.tile(noise.waveform, 4)[: len(noise.waveform) + 1599]
            position = int(np.argmax(np.correlate(long, added, "valid")))
            part = long[position : position + 1600]
            scores.append((added @ part / np.linalg.norm(added) / np.linalg.norm(part), number, position))
        similarity, number, position = max(scores)
        assert similarity > 0.999
        sources.add(number)
        starts.add((number, position))
        assert result.targets is ONE.targets
    assert 2.99 < min(ratios) < 3.5
    assert 8.5 < max(ratios) < 9.01
    assert sources == {0, 1}
    assert len(starts) > DRAWS / 2


def test_the_background_is_added_at_its_rate_and_silence_changes_nothing():
    step = functools.partial(STEPS["background"], rate=0.3)
    changed = sum(result is not ONE for result in draws(step))
    assert 0.2 * DRAWS < changed < 0.4 * DRAWS
    rng = np.random.default_rng(0)
    assert waveform.background(ONE, rng, opened, datafile="silent.json", rate=1.0) is ONE
    silent = Example(np.zeros(100, np.float32), {})
    assert STEPS["background"](silent, rng) is silent


@pytest.mark.parametrize("most", [2, 5])
@pytest.mark.parametrize("union", [False, True])
def test_a_mix_has_the_weighted_targets_of_its_clips_or_their_union(most: int, union: bool):
    step = functools.partial(waveform.mixup, clips=CLIPS, mixup=1.0, most=most, union=union, alpha=2.0)
    for seed in range(50):
        result = step(ONE, np.random.default_rng(seed))
        mix = draw_mix(np.random.default_rng(seed), 1.0, len(CLIPS), alpha=2.0, most=most)
        members = [ONE, *(CLIPS[partner] for partner in mix.partners)]
        expected = mix_waveforms([member.waveform for member in members], mix.weights)
        np.testing.assert_array_equal(result.waveform, expected)
        means = {
            name: np.average([member.targets[name] for member in members], axis=0, weights=mix.weights)
            for name in ONE.targets
        }
        if union:
            means = {name: np.max([member.targets[name] for member in members], axis=0) for name in means}
        assert set(result.targets) == set(means)
        for name, mean in means.items():
            np.testing.assert_allclose(result.targets[name], mean, atol=1e-6)


def test_a_clip_that_cannot_be_read_leaves_the_example_unmixed():
    clips = Examples([None])
    result = waveform.mixup(ONE, np.random.default_rng(0), clips, 1.0)
    assert (result.waveform is ONE.waveform, result.targets is ONE.targets, result.failed) == (True, True, 0)
    assert waveform.mixup(ONE, np.random.default_rng(0), clips, 0.0) is ONE
    noises = {"gone.json": clips}
    assert waveform.background(ONE, np.random.default_rng(0), noises.get, datafile="gone.json", rate=1.0) is ONE
