"""Grain datasets from one call: the batches of the loader, with functions of one's own between reading and batching."""

from __future__ import annotations

import os
import sys

import grain
import numpy as np
import pytest

import psla_jax
from psla_jax.audio.decode import write_pcm16
from psla_jax.config import ConfigError, DataConfig, SamplingConfig
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.data.loader import Batch, batches, evaluation_source
from psla_jax.data.train_source import train_source
from psla_jax.ingredients import IngredientError
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = Vocabulary(("a", "b", "c"), ("A", "B", "C"))
LENGTHS = (1000, 300, 1600, 999, 2400, 800, 1001)
LABELS = (["a"], ["b"], ["a", "c"], [], ["c"], ["a"], ["b", "c"])
CLIPS, SAMPLES, SEED = len(LENGTHS), 1000, 11
MIXED = SamplingConfig(balanced=True, mixup=0.5)


@pytest.fixture
def data(tmp_path) -> Datafile:
    for clip, length in enumerate(LENGTHS):
        write_pcm16(tmp_path / f"{clip}.wav", np.random.default_rng(clip).uniform(-0.3, 0.3, length))
    datafile.write(tmp_path / "train.json", [(f"{clip}.wav", mids) for clip, mids in enumerate(LABELS)])
    return Datafile.read(tmp_path / "train.json", CLASSES)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def dataset(data, **settings) -> grain.MapDataset:
    return psla_jax.loader(data, num_samples=SAMPLES, batch_size=3, seed=SEED, **settings)


def test_the_dataset_of_one_call_has_the_batches_of_a_training_or_of_an_evaluation(data):
    config = DataConfig(batch_size=3)
    training = train_source(data, config, MIXED, num_samples=SAMPLES, epochs=3, seed=SEED)
    evaluation = evaluation_source(data, config, num_samples=SAMPLES)
    assert_same(list(dataset(data, sampling=MIXED, epochs=3)), list(batches(training)))
    assert_same(list(dataset(data)), list(batches(evaluation)))
    assert_same(list(dataset(data, epochs=2)), 2 * list(batches(evaluation)))


def test_a_dataset_takes_paths_and_its_frontend_gives_the_length(data):
    vocabulary_file = os.path.join(os.path.dirname(data.source), "labels.csv")
    CLASSES.write(vocabulary_file)
    for labels in (CLASSES, vocabulary_file):
        assert_same(list(dataset(data.source, labels=labels)), list(dataset(data)))
    demo = psla_jax.loader("demo:evaluation", psla_jax.Frontend(96), labels="demo", batch_size=32)
    assert [len(demo), demo[0]["waveform"].shape, demo[0]["labels"].shape] == [7, (32, 15_600), (32, 17)]


def test_waveforms_have_the_sample_rate_of_the_frontend(data):
    for sampling in (None, SamplingConfig(balanced=False, waveform=())):
        settings = {"sampling": sampling, "seed": SEED, "batch_size": CLIPS}
        usual = psla_jax.loader(data, psla_jax.FrontendConfig(20), **settings)[0]
        double = psla_jax.loader(data, psla_jax.FrontendConfig(20, sample_rate=32_000), **settings)[0]
        assert [usual["waveform"].shape, double["waveform"].shape] == [(CLIPS, 3440), (CLIPS, 6880)]
        np.testing.assert_array_equal(double["num_samples"], 2 * usual["num_samples"])
        assert sorted(usual["num_samples"].tolist()) == sorted(LENGTHS)


def test_own_functions_come_between_reading_and_batching(data):
    def loudest(row):
        return {**row, "peak": np.abs(row["waveform"]).max()}

    plain = list(dataset(data, sampling=MIXED))
    maps = (loudest, lambda row: {**row, "labels": row["labels"] * row["peak"]})
    rows = psla_jax.loader(data, num_samples=SAMPLES, sampling=MIXED, seed=SEED, batch_size=None)
    by_hand = rows.map(maps[0]).map(maps[1]).batch(3)
    assert len(rows) == CLIPS
    for mapped, other, before in zip(dataset(data, sampling=MIXED, maps=maps), by_hand, plain, strict=True):
        peak = np.abs(before["waveform"]).max(axis=1)
        np.testing.assert_array_equal(mapped["peak"], peak)
        np.testing.assert_array_equal(mapped["labels"], before["labels"] * peak[:, None])
        for name in other:  # Only the batches of the loader are padded.
            np.testing.assert_array_equal(other[name], mapped[name][: len(other[name])])


def test_an_iterator_continues_from_its_state(data):
    iterator = iter(dataset(data, sampling=MIXED, epochs=3))
    first = [next(iterator) for _ in range(4)]
    state, rest = iterator.get_state(), list(iterator)
    assert_same([*first, *rest], list(dataset(data, sampling=MIXED, epochs=3)))
    resumed = iter(dataset(data, sampling=MIXED, epochs=3))
    resumed.set_state(state)
    assert_same(list(resumed), rest)


def test_worker_processes_of_a_dataset_give_the_same_batches_and_use_no_device(data, monkeypatch):
    def traced(row):
        return {**row, "process": np.int64(os.getpid()), "frontend": np.int64("psla_jax.audio.frontend" in sys.modules)}

    # A process with this environment fails as soon as JAX initializes a device.
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    marked = dataset(data, sampling=MIXED, epochs=2, maps=[traced])
    collected = list(marked.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=2)))
    assert len({int(process) for batch in collected for process in batch.pop("process")} - {os.getpid()}) == 2
    assert not any(batch.pop("frontend").any() for batch in collected)
    assert_same(collected, list(dataset(data, sampling=MIXED, epochs=2)))


def test_an_unusable_dataset_is_an_error_before_anything_is_read(data):
    with pytest.raises(ConfigError, match="pass either a frontend or num_samples"):
        psla_jax.loader(data)
    with pytest.raises(ConfigError, match=r"labels is empty: name the label file of .*train\.json"):
        psla_jax.loader(data.source, num_samples=SAMPLES)
    with pytest.raises(ConfigError, match=r"data\.batch_size is 0: use at least one clip"):
        psla_jax.loader(data, num_samples=SAMPLES, batch_size=0)
    with pytest.raises(IngredientError, match=r"sampling\.waveform is 'reverb': 'reverb' is unknown"):
        dataset(data, sampling=SamplingConfig(waveform=("reverb",)))
