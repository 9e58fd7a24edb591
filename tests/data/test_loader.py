"""Batches of the loader, compared with waveforms and labels computed from the files by hand."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sounds

from psla_jax.audio.decode import read, write_pcm16
from psla_jax.config import DataConfig, SamplingConfig
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.data.loader import Batch, EvaluationSource, LoaderError, batches, evaluation_source
from psla_jax.data.train_source import STREAM, TrainSource, plain_source, train_source
from psla_jax.sampling.balance import epoch_order
from psla_jax.sampling.mixup import Mix, draw_mix
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = Vocabulary(("a", "b", "c"), ("A", "B", "C"))
LENGTHS = (1000, 300, 1600, 999, 2400, 800, 1001)
LABELS = (["a"], ["b"], ["a", "c"], [], ["c"], ["a"], ["b", "c"])
HOT = np.array([[mid in mids for mid in CLASSES.mids] for mids in LABELS], np.float32)
CLIPS, SAMPLES, SEED = len(LENGTHS), 1000, 11
SHAPES = {
    "waveform": ((SAMPLES,), np.float32),
    "num_samples": ((), np.int32),
    "left_out": ((), np.int32),
    "flawed": ((), np.int32),
    "narrow": ((), np.int32),
    "labels": ((len(CLASSES),), np.float32),
    "valid": ((), np.float32),
    "clip": ((), np.int64),
    "failed": ((), np.int64),
}
PLAIN = SamplingConfig(balanced=False, mixup=0.0)
MIXED = SamplingConfig(balanced=True, mixup=0.5)
ALL_MIXED = SamplingConfig(balanced=False, mixup=1.0)


def stored(clip: int) -> np.ndarray:
    """Samples in the file of a clip: 16-bit values whose mean differs from 0, and also between the halves."""
    length = LENGTHS[clip]
    values = np.random.default_rng(clip).integers(-3000, 3000, length) + 2000
    values[length // 2 :] += 5000
    return values / 32768


def zero_mean(clip: int) -> np.ndarray:
    """The clip minus the mean over the whole clip, float64."""
    return stored(clip) - stored(clip).mean()


def padded(waveform: np.ndarray) -> np.ndarray:
    row = np.zeros(SAMPLES)
    row[: min(SAMPLES, len(waveform))] = waveform[:SAMPLES]
    return row


@pytest.fixture
def data(tmp_path) -> Datafile:
    for clip in range(CLIPS):
        write_pcm16(tmp_path / f"{clip}.wav", stored(clip))
    datafile.write(tmp_path / "train.json", [(f"{clip}.wav", mids) for clip, mids in enumerate(LABELS)])
    return Datafile.read(tmp_path / "train.json", CLASSES)


def training(
    data: Datafile, sampling: SamplingConfig = MIXED, *, batch_size: int = 3, epochs: int = 3, seed: int = SEED
) -> TrainSource:
    config = DataConfig(batch_size=batch_size)
    return train_source(data, config, sampling, num_samples=SAMPLES, epochs=epochs, seed=seed)


def evaluation(data: Datafile, batch_size: int = 3) -> EvaluationSource:
    return evaluation_source(data, DataConfig(batch_size=batch_size), num_samples=SAMPLES)


def drawn_mix(rate: float, row: int) -> Mix | None:
    """The mix of a row, where every epoch has as many rows as clips."""
    return draw_mix(np.random.default_rng([STREAM, SEED, *divmod(row, CLIPS)]), rate, CLIPS)


def joined(stream) -> Batch:
    """All rows of a stream of batches."""
    collected = list(stream)
    return {name: np.concatenate([batch[name] for batch in collected]) for name in SHAPES}


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def break_file(data: Datafile, clip: int) -> None:
    """Overwrites the file of a clip with an incomplete header."""
    with open(data.wav(clip), "wb") as file:
        file.write(b"RIFF and no more")


# ---- Rows and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [training, evaluation])
def test_a_batch_has_the_documented_fields(data, make):
    stream = list(batches(make(data)))
    assert len(stream) == (9 if make is training else 3)
    for batch in stream:
        assert batch.keys() == SHAPES.keys()
        for name, (shape, dtype) in SHAPES.items():
            assert batch[name].shape == (3, *shape), name
            assert batch[name].dtype == dtype, name


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_an_evaluation_has_every_clip_exactly_once_and_fills_its_last_batch(data, batch_size):
    stream = list(batches(evaluation(data, batch_size)))
    assert len(stream) == -(-CLIPS // batch_size)
    assert {len(batch["clip"]) for batch in stream} == {batch_size}
    rows = joined(stream)
    filled = len(rows["clip"]) - CLIPS
    np.testing.assert_array_equal(rows["clip"], [*range(CLIPS), *[-1] * filled])
    np.testing.assert_array_equal(rows["valid"], [1] * CLIPS + [0] * filled)
    np.testing.assert_array_equal(rows["failed"], -1)
    np.testing.assert_array_equal(rows["labels"][:CLIPS], HOT)
    for name in ("waveform", "num_samples", "labels"):
        assert not rows[name][CLIPS:].any()


def test_the_mean_is_that_of_the_whole_clip_and_only_then_it_is_cut_or_padded(data):
    rows = joined(batches(evaluation(data)))
    for clip in range(CLIPS):
        np.testing.assert_allclose(rows["waveform"][clip], padded(zero_mean(clip)), atol=1e-6)
        assert rows["num_samples"][clip] == min(LENGTHS[clip], SAMPLES)
        assert not rows["waveform"][clip, LENGTHS[clip] :].any()
    # The mean of the remaining samples of a cut clip is far from zero, so subtracting it instead would fail above.
    assert abs(rows["waveform"][4].mean()) > 0.05


def test_the_channel_is_that_of_the_config(tmp_path):
    left, right = np.array([0.5, -0.5, 0.25, -0.25]), np.array([0.25, 0.25, -0.25, -0.25])
    soundfile.write(tmp_path / "0.wav", np.stack([left, right], axis=1), 16000)
    datafile.write(tmp_path / "train.json", [("0.wav", ["a"])])
    data = Datafile.read(tmp_path / "train.json", CLASSES)
    for channel, expected in [("first", left), ("mean", (left + right) / 2)]:
        config = DataConfig(batch_size=1, channel=channel)
        for source in (
            evaluation_source(data, config, num_samples=4),
            train_source(data, config, PLAIN, num_samples=4, epochs=1, seed=0),
        ):
            np.testing.assert_allclose(source[0]["waveform"], expected, atol=1e-6)


# ---- Epochs ----------------------------------------------------------------------------------------------------------


def test_an_epoch_has_as_many_draws_as_clips_and_invalid_rows_fill_its_last_batch(data):
    rows = joined(batches(training(data, batch_size=3, epochs=2)))
    np.testing.assert_array_equal(rows["valid"], ([1] * 7 + [0] * 2) * 2)
    empty = rows["valid"] == 0
    assert (rows["clip"][empty] == -1).all()
    assert (rows["clip"][~empty] >= 0).all()
    for name in ("waveform", "num_samples", "labels"):
        assert not rows[name][empty].any()
    assert (rows["failed"] == -1).all()


@pytest.mark.parametrize("sampling", [PLAIN, MIXED], ids=["shuffled", "balanced"])
def test_clips_come_in_the_order_drawn_for_each_epoch(data, sampling):
    rows = joined(batches(training(data, sampling, epochs=4)))
    weights = data.clip_weights() if sampling.balanced else None
    expected = [epoch_order(CLIPS, weights, seed=SEED, epoch=epoch) for epoch in range(4)]
    np.testing.assert_array_equal(rows["clip"][rows["valid"] == 1], np.concatenate(expected))
    assert not np.array_equal(expected[0], expected[1])


def test_without_augmentation_a_row_is_its_clip(data):
    rows = joined(batches(training(data, PLAIN, batch_size=7, epochs=2)))
    for row, clip in enumerate(rows["clip"]):
        np.testing.assert_allclose(rows["waveform"][row], padded(zero_mean(clip)), atol=1e-6)
        np.testing.assert_array_equal(rows["labels"][row], HOT[clip])


def test_a_mixed_row_has_both_clips_and_a_share_of_each_label(data):
    rows = joined(batches(training(data, ALL_MIXED, batch_size=7, epochs=4)))
    lengths = set()
    for row, clip in enumerate(rows["clip"]):
        mix = drawn_mix(1.0, row)
        (partner,), (weight, _) = mix.partners, mix.weights
        whole = weight * zero_mean(clip)
        common = min(LENGTHS[clip], LENGTHS[partner])
        whole[:common] += (1 - weight) * zero_mean(partner)[:common]
        np.testing.assert_allclose(rows["waveform"][row], padded(whole - whole.mean()), atol=1e-6)
        labels = weight * HOT[clip] + (1 - weight) * HOT[partner]
        np.testing.assert_allclose(rows["labels"][row], labels, atol=1e-6)
        assert rows["num_samples"][row] == min(LENGTHS[clip], SAMPLES)
        lengths.add(np.sign(LENGTHS[partner] - LENGTHS[clip]))
    assert lengths >= {-1, 1}
    assert len(np.unique(rows["labels"])) > 10
    assert 0 <= rows["labels"].min() <= rows["labels"].max() <= 1


def test_only_some_rows_are_mixed_at_half_the_rate(data):
    rows = joined(batches(training(data, SamplingConfig(balanced=False, mixup=0.5), batch_size=7, epochs=4)))
    draws = [drawn_mix(0.5, row) for row in range(4 * CLIPS)]
    same = [np.allclose(rows["waveform"][r], padded(zero_mean(c)), atol=1e-6) for r, c in enumerate(rows["clip"])]
    for mix, clip, unchanged in zip(draws, rows["clip"], same, strict=True):
        assert unchanged == (mix is None or mix.partners == (clip,))
    assert 4 < sum(same) < 4 * CLIPS - 4


def test_a_pass_for_statistics_is_one_epoch_of_the_clips_themselves(data):
    source = plain_source(data, DataConfig(batch_size=3), num_samples=SAMPLES, seed=SEED)
    assert_same(list(batches(source)), list(batches(training(data, PLAIN, epochs=1))))


def test_seeds_differ(data):
    one, other = joined(batches(training(data, seed=1))), joined(batches(training(data, seed=2)))
    assert not np.array_equal(one["clip"], other["clip"])


def test_the_batch_size_does_not_change_the_draws(data):
    streams = [joined(batches(training(data, batch_size=size))) for size in (1, 3, 4, 7, 8)]
    valid = [{name: rows[name][rows["valid"] == 1] for name in rows} for rows in streams]
    for other in valid[1:]:
        assert_same([valid[0]], [other])


# ---- Independence of workers, threads and start ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [training, evaluation])
def test_starting_later_gives_the_rest_of_the_stream(data, make):
    whole = list(batches(make(data)))
    for start in range(len(whole) + 1):
        assert_same(list(batches(make(data), start=start)), whole[start:])


def test_stopping_earlier_gives_the_first_part(data):
    whole = list(batches(training(data)))
    for start, stop in [(0, 4), (2, 5), (3, 3), (5, 9), (4, 100)]:
        assert_same(list(batches(training(data), start=start, stop=stop)), whole[start:stop])


def test_threads_do_not_change_the_stream(data):
    assert_same(list(batches(training(data), threads=7)), list(batches(training(data), threads=1)))


def test_worker_processes_give_the_same_stream_and_use_no_device(data, tmp_path, monkeypatch):
    whole = list(batches(training(data)))
    # A process with this environment fails as soon as JAX initializes a device.
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    shared = training(data.share(tmp_path / "shared"))
    assert_same(list(batches(shared, workers=2, start=2)), whole[2:])


def test_items_do_not_depend_on_the_order_of_access(data):
    source = training(data, epochs=5)
    in_order = [source[item] for item in range(len(source))]
    for item in np.random.default_rng(0).permutation(len(source)):
        assert_same([source[item]], [in_order[item]])
        assert_same([training(data, epochs=5)[item]], [in_order[item]])


@pytest.mark.parametrize("make", [training, evaluation])
def test_a_source_is_pickled_without_its_caches(data, make):
    source = make(data)
    fresh = pickle.dumps(source)
    items = [source[item] for item in range(len(source))]
    assert len(pickle.dumps(source)) == len(fresh)
    copy = pickle.loads(fresh)
    assert_same([copy[item] for item in range(len(copy))], items)


# ---- Unreadable clips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [break_file, lambda data, clip: os.unlink(data.wav(clip))], ids=["broken", "gone"])
@pytest.mark.parametrize("make", [lambda data: training(data, PLAIN, epochs=1), evaluation], ids=["train", "evaluate"])
def test_an_unreadable_clip_is_an_invalid_row_with_its_index(data, make, spoil):
    before = joined(batches(make(data)))
    spoil(data, 4)
    after = joined(batches(make(data)))
    bad = after["clip"] == 4
    assert bad.sum() == 1
    assert after["valid"][bad] == 0
    assert after["failed"][bad] == 4
    for name in ("waveform", "num_samples", "labels"):
        assert not after[name][bad].any()
    np.testing.assert_array_equal(after["failed"][~bad], -1)
    for name in SHAPES:
        np.testing.assert_array_equal(after[name][~bad], before[name][~bad])


def test_an_unreadable_partner_leaves_the_clip_unmixed(data):
    source = training(data, ALL_MIXED, batch_size=7, epochs=4)
    before = joined(batches(source))
    break_file(data, 4)
    after = joined(batches(source))
    partners = np.array([drawn_mix(1.0, row).partners[0] for row in range(4 * CLIPS)])
    unmixed = (partners == 4) & (after["clip"] != 4)
    assert unmixed.any()
    for row in np.flatnonzero(unmixed):
        clip = after["clip"][row]
        np.testing.assert_allclose(after["waveform"][row], padded(zero_mean(clip)), atol=1e-6)
        np.testing.assert_array_equal(after["labels"][row], HOT[clip])
        assert after["num_samples"][row] == min(LENGTHS[clip], SAMPLES)
    bad = after["clip"] == 4
    np.testing.assert_array_equal(after["valid"], np.where(bad, 0, 1))
    np.testing.assert_array_equal(after["failed"], np.where(bad | unmixed, 4, -1))
    for name in SHAPES:
        np.testing.assert_array_equal(after[name][~bad & ~unmixed], before[name][~bad & ~unmixed])


@pytest.mark.parametrize("make", [training, evaluation])
@pytest.mark.parametrize(("count", "start"), [(2, 0), (4, 0), (4, 2)])
def test_the_parts_of_several_processes_are_the_batches_of_one(data, make, count, start):
    source = make(data, batch_size=4)
    size = source.batch_size // count
    rows = [range(first, first + size) for first in range(0, source.batch_size, size)]
    parts = [list(batches(source, start=start, rows=part)) for part in rows]
    whole = list(batches(source, start=start))
    assert all(len(part) == len(whole) for part in parts)
    for number, batch in enumerate(whole):
        for name in batch:
            together = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(together, batch[name], err_msg=name)


def test_rows_beyond_the_batch_are_padding(data):
    """A batch of 4 for 3 devices has 6 rows, the last two of them invalid."""
    source = evaluation(data, batch_size=4)
    whole, padded_batches = list(batches(source)), list(batches(source, rows=range(6)))
    assert len(padded_batches) == len(whole)
    for batch, wider in zip(whole, padded_batches):
        for name in batch:
            np.testing.assert_array_equal(wider[name][:4], batch[name], err_msg=name)
        assert not wider["valid"][4:].any()
        assert not wider["waveform"][4:].any()
        assert (wider["clip"][4:] == -1).all()


def test_a_killed_worker_raises_a_loader_error(data):
    stream = batches(training(data, epochs=300), workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(LoaderError, match=r"loader process was killed, .* with fewer data\.workers to resume"):
        list(stream)


# ---- Segments --------------------------------------------------------------------------------------------------------


def pitch(waveform: np.ndarray) -> float:
    """The loudest frequency in hertz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * 16_000 / len(waveform))


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("make", [training, evaluation])
def test_segments_of_one_file_are_different_clips(tmp_path, rate, make):
    time = np.arange(rate) / rate
    tones = np.concatenate([np.sin(2 * np.pi * hertz * time) / 2 for hertz in (400, 1600, 3200)])
    soundfile.write(tmp_path / "tones.wav", tones, rate)
    times = [(1.0, 1.05), (0.0, 0.04), (2.5, 2.9)]
    records = [Record("tones.wav", [mid], *time) for mid, time in zip(CLASSES.mids, times)]
    datafile.write(tmp_path / "train.json", [*records, ("tones.wav", [])])
    data = Datafile.read(tmp_path / "train.json", CLASSES).share(tmp_path / "shared")
    rows = joined(batches(make(data) if make is evaluation else make(data, PLAIN, epochs=1), workers=1))
    whole = read(tmp_path / "tones.wav")
    for clip, start, length, hertz in ((0, 16_000, 800, 1600), (1, 0, 640, 400), (2, 40_000, 1000, 3200)):
        (row,) = np.flatnonzero(rows["clip"] == clip)
        end = round(times[clip][1] * 16_000)
        expected = (whole[start:end] - whole[start:end].mean())[:length]
        assert rows["num_samples"][row] == length
        np.testing.assert_allclose(rows["waveform"][row][:length], expected, atol=1e-6)
        assert abs(pitch(rows["waveform"][row][:length]) - hertz) < 30
        assert rows["labels"][row].tolist() == [float(clip == c) for c in range(3)]
    (row,) = np.flatnonzero(rows["clip"] == 3)
    assert abs(pitch(rows["waveform"][row]) - 400) < 30


def test_a_segment_beyond_its_file_is_an_unreadable_clip(data, tmp_path):
    records = [("0.wav", ["a"]), Record("0.wav", ["a"], 1.0, 2.0), Record("4.wav", ["c"], 0.1, 0.3)]
    datafile.write(tmp_path / "cut.json", records)
    rows = joined(batches(evaluation(Datafile.read(tmp_path / "cut.json", CLASSES))))
    assert rows["failed"].tolist() == [-1, 1, -1]
    assert rows["num_samples"].tolist() == [1000, 0, 800]  # the last one ends within the tolerance after its file


def test_waveforms_of_batches_are_aligned_so_that_jax_copies_none(tmp_path):
    folder = sounds.make(tmp_path, train=3)
    data = Datafile.read(folder / "train.json", sounds.VOCABULARY)
    source = evaluation_source(data, DataConfig(batch_size=2), num_samples=1001)
    addresses = [batch["waveform"].ctypes.data % 64 for batch in batches(source)]
    assert addresses == [0] * source.num_batches


def test_a_closed_loader_leaves_no_shared_memory(tmp_path):
    data = Datafile.read(sounds.make(tmp_path, train=40) / "train.json", sounds.VOCABULARY)
    samples = 10_007  # Other tests have no arrays of this size.
    source = train_source(data, DataConfig(batch_size=2), SamplingConfig(), num_samples=samples, epochs=9, seed=0)

    def of_this_loader() -> list[Path]:
        return [path for path in Path("/dev/shm").glob("psm_*") if path.stat().st_size == 2 * samples * 4]

    stream = batches(source, workers=1)
    assert next(stream)["waveform"].shape == (2, samples)
    time.sleep(0.5)  # The process prepares further batches.
    stream.close()
    assert of_this_loader() == []
