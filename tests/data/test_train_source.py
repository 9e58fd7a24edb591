"""Augmentation of training rows: keys, order, own steps also in worker processes, and steps that cannot be used."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import sounds
from steps import fade

from psla_jax.config import ConfigError, DataConfig, SamplingConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.loader import batches
from psla_jax.data.train_source import STREAM, AugmentationError, TrainSource, train_source
from psla_jax.ingredients import IngredientError
from psla_jax.sampling import waveform
from psla_jax.sampling.waveform import Example

SAMPLES, SEED, BATCH = 4000, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.make(tmp_path_factory.mktemp("sounds"), train=10)


def source(folder: Path, *steps: str, epochs: int = 2, **fields: object) -> TrainSource:
    data = Datafile.read(folder / "train.json", sounds.VOCABULARY)
    sampling = SamplingConfig(balanced=False, waveform=steps, **fields)
    return train_source(data, DataConfig(batch_size=BATCH), sampling, num_samples=SAMPLES, epochs=epochs, seed=SEED)


def test_steps_are_applied_in_their_order_with_generators_of_their_own(folder: Path):
    steps = "gain(decibels=12)", "steps:fade(power=2)", "gain(decibels=3)"
    rows = source(folder, *steps)
    plain = source(folder)
    for item in (0, 5, 9, 12, 17, 21):
        epoch, sample = divmod(item, 12)
        row, untouched = rows[item], plain[item]
        assert row["clip"] == untouched["clip"]
        generators = [np.random.default_rng([STREAM, SEED, epoch, sample, *extra]) for extra in ([], [1], [2])]
        example = plain.clips[int(row["clip"])]
        example = waveform.gain(example, generators[0], decibels=12)
        example = fade(example, generators[1], SAMPLES, plain.clips, power=2)
        example = waveform.gain(example, generators[2], decibels=3)
        size = min(SAMPLES, len(example.waveform))
        np.testing.assert_array_equal(row["waveform"][:size], example.waveform[:size])
        assert row["num_samples"] == size


def test_worker_processes_apply_steps_of_ones_own_too(folder: Path):
    rows = source(
        folder, "mixup(most=3)", "steps:fade", "crop", f"background(datafile={str(folder / 'validation.json')!r})"
    )
    rows.require_usable()
    here, there = list(batches(rows)), list(batches(rows, workers=2))
    assert len(here) == len(there) == 6
    for one, other in zip(here, there):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_crop_starts_anywhere_in_a_clip_and_the_row_is_full(folder: Path):
    rows, plain = source(folder, "crop", epochs=8), source(folder, epochs=8)
    starts = set()
    for item in range(0, len(rows), BATCH):
        row, clip = rows[item], plain.clips[plain[item]["clip"]].waveform
        start = int(np.flatnonzero(clip == row["waveform"][0])[0])
        np.testing.assert_array_equal(row["waveform"], clip[start : start + SAMPLES])
        assert row["left_out"] == 0
        starts.add(start)
    assert len(starts) > 10


def test_a_background_comes_from_a_datafile_whose_labels_do_not_matter(folder: Path, tmp_path: Path):
    text = (folder / "evaluation.json").read_text().replace("/t/low", "/t/unknown")
    noises = tmp_path / "noises.json"
    noises.write_text(text)
    assert "/t/unknown" in text
    step = f"background(datafile={str(noises)!r}, rate=1.0, snr=(10, 10))"
    rows, plain = source(folder, step), source(folder)
    rows.require_usable()
    for item in range(10):
        row, untouched = rows[item], plain[item]
        np.testing.assert_array_equal(row["labels"], untouched["labels"])
        clip = plain.clips[int(row["clip"])]
        noisy = rows.augment(clip, 0, item).waveform
        added = np.float64(noisy) - clip.waveform
        assert 10 * np.log10(np.mean(np.square(clip.waveform)) / np.mean(np.square(added))) == pytest.approx(
            10, abs=0.01
        )


def nonsense(example: Example, rng: np.random.Generator) -> object:
    return None


def samples_only(example: Example, rng: np.random.Generator) -> object:
    return example.waveform


def a_list(example: Example, rng: np.random.Generator) -> Example:
    return dataclasses.replace(example, waveform=example.waveform.tolist())


def wide(example: Example, rng: np.random.Generator) -> Example:
    return dataclasses.replace(example, waveform=example.waveform.astype(np.float64))


def not_finite(example: Example, rng: np.random.Generator) -> Example:
    return dataclasses.replace(example, waveform=np.full_like(example.waveform, np.nan))


def without_labels(example: Example, rng: np.random.Generator) -> Example:
    return dataclasses.replace(example, targets={})


def sometimes_broken(example: Example, rng: np.random.Generator) -> Example:
    return example if rng.random() < 0.5 else example.wavefrom


def demanding(example: Example, rng: np.random.Generator, phase: float) -> Example:
    return example


UNUSABLE = [
    *[
        (name, "does not return an Example with")
        for name in ("nonsense", "samples_only", "a_list", "wide", "not_finite")
    ],
    ("without_labels", "does not return an Example with"),
    ("sometimes_broken", r"cannot be computed \(AttributeError: .*wavefrom"),
    (
        "demanding",
        r"demanding\(example, rng, phase\) cannot be called .*: it may take clips, open_clips, num_samples, ",
    ),
    ("mixup(alpha=-1)", r"cannot be computed \(ValueError: .*\): correct the step or its options\.$"),
    ("mixup(most=1)", r"cannot be computed \(ValueError"),
    ("gain(decibel=3)", r"gain has no option 'decibel': its parameters are example, rng, decibels\.$"),
    ("echo", "'echo' is unknown: choose one of mixup, gain, roll, crop, background, or name module:callable"),
    ("background(snr=(0, 5))", r"cannot be called \(missing a required (keyword-only )?argument: 'datafile'\)"),
    ("nowhere:step", r"'nowhere:step' cannot be imported \(No module named 'nowhere'\)"),
]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_that_fails_later_is_named_with_its_sample(folder: Path, workers: int):
    rows = source(folder, "gain", "steps:fails_later", epochs=20)
    with pytest.raises(RuntimeError) as raised:
        list(batches(rows, workers=workers))
    if workers == 0:
        assert isinstance(raised.value, AugmentationError)
    pattern = (
        r"fails_later' of sampling\.waveform failed for sample \d of epoch \d+ \(ZeroDivisionError: division by zero\)"
    )
    assert re.search(pattern, str(raised.value))


@pytest.mark.parametrize(("text", "message"), UNUSABLE)
def test_a_step_that_cannot_be_used_is_refused(folder: Path, text: str, message: str):
    text = f"{__name__}:{text}" if text in globals() else text
    with pytest.raises(IngredientError, match=message) as raised:
        source(folder, "gain", text).require_usable()
    assert str(raised.value).startswith("sampling.waveform")
    assert "\n" not in str(raised.value)


def test_a_background_that_is_missing_is_named(folder: Path):
    rows = source(folder, "background(datafile='nowhere.json')")
    with pytest.raises(
        ConfigError, match=r"^sampling\.waveform is \"background\(datafile='nowhere\.json'\)\": .*nowhere"
    ):
        rows.require_usable()
