"""Sounds that only a model of 32 kHz can tell apart, from training to events, and what is said about other files."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import sounds
import tiny
from flax import nnx

import psla_jax
from psla_jax.audio import decode
from psla_jax.audio.frontend import Frontend
from psla_jax.config import AggregationConfig, FrontendConfig, ModelConfig, OptimizerConfig, SamplingConfig
from psla_jax.data import datafile, datasets
from psla_jax.evaluation.scores import Scores
from psla_jax.models.factory import build_model
from psla_jax.models.model_dir import load_model, read_card
from psla_jax.models.self_test import run_self_test
from psla_jax.tagging.events import Rules
from psla_jax.tagging.live.stream import Stream, StreamError
from psla_jax.tagging.tagger import Tagger, TaggerError
from psla_jax.training import loop
from psla_jax.training.run_directory import RunError

RATE = 32_000
BANDS = ((9000, 10_500), (12_500, 15_500), (0, 0))
"""Frequencies of the classes, all above 8 kHz; the third one is nearly silent."""
SETTINGS = FrontendConfig(target_length=48, mean="auto", std="auto", sample_rate=RATE, num_mels=64)


def sound(kind: int, seconds: float, rng: np.random.Generator, rate: int = RATE) -> np.ndarray:
    count = round(seconds * rate)
    hertz = np.fft.rfftfreq(count, 1 / rate)
    spectrum = np.fft.rfft(rng.normal(0, 1, count))
    low, high = BANDS[kind]
    band = np.fft.irfft(np.where((hertz >= low) & (hertz < high), spectrum, 0), count)
    return (0.1 * band + rng.normal(0, 0.001, count)).astype(np.float32)


@pytest.fixture(scope="module")
def high(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datafiles of clips at 32 kHz."""
    folder = tmp_path_factory.mktemp("high")
    sounds.VOCABULARY.write(folder / "labels.csv")
    for number, split in enumerate(sounds.SIZES):
        rng, records = np.random.default_rng(number), []
        for i in range(48 if split == "train" else 9):
            path = folder / f"{split}{i}.wav"
            soundfile.write(path, sound(i % 3, rng.uniform(0.5, 0.7), rng), RATE)
            records.append((str(path), [sounds.VOCABULARY.mids[i % 3]]))
        datafile.write(folder / f"{split}.json", records)
    return folder


def config(data: Path, run_dir: Path, **fields: object) -> psla_jax.RunConfig:
    values: dict = {
        "frontend": SETTINGS,
        "model": ModelConfig("tiny:build64"),
        "sampling": SamplingConfig(mixup=0.0, freq_mask=0, time_mask=0),
        "optimizer": OptimizerConfig(learning_rate=2e-2, epochs=8, warmup_steps=0, decay_start=8),
        "aggregation": AggregationConfig(first=6),
    }
    return sounds.config(data, run_dir, **(values | fields))


@pytest.fixture(scope="module")
def run(high: Path, tmp_path_factory: pytest.TempPathFactory) -> psla_jax.RunConfig:
    trained = config(high, tmp_path_factory.mktemp("runs") / "high")
    loop.train(trained)
    return trained


@pytest.fixture(scope="module")
def tagger(run: psla_jax.RunConfig) -> Tagger:
    return psla_jax.load(run.run_dir, trust=True)


def test_classes_above_8_khz_are_learnt_at_32_khz(run, high, tmp_path):
    save = tmp_path / "scores.npz"
    data = high / "evaluation.json"
    result = psla_jax.evaluate(run.run_dir, data, trust=True, bootstrap=0, batch_size=8, save=save)
    assert result.ensemble.mAP == 1
    of_the_run = Scores.load(Path(run.run_dir) / "scores" / "evaluation_average.npz")
    np.testing.assert_allclose(Scores.load(save).scores, of_the_run.scores, atol=1e-6)
    assert of_the_run.notes() == []
    assert run_self_test(load_model(run.run_dir, trust=True), "the run").max_difference < 1e-6


def test_events_of_a_recording_at_another_rate_have_its_times(run, tagger):
    rng, times = np.random.default_rng(9), ((3.0, 5.0), (8.0, 10.0))
    pieces = [(2, 3.0), (0, 2.0), (2, 3.0), (1, 2.0), (2, 1.5)]
    waveform = np.concatenate([sound(kind, seconds, rng, 48_000) for kind, seconds in pieces])
    assert tagger.window_seconds == pytest.approx(0.495)
    timeline = tagger.timeline(waveform, 48_000)
    scores, middle = timeline.scores.astype(np.float32), timeline.times + 0.16
    thresholds = np.full(4, np.inf)
    for kind, (onset, offset) in enumerate(times):
        sounding = (middle > onset + 0.64) & (middle < offset - 0.64)
        silent = (middle < onset - 0.64) | (middle > offset + 0.64)
        assert scores[sounding, kind].min() > scores[silent, kind].max() + 0.1
        thresholds[kind] = (scores[sounding, kind].min() + scores[silent, kind].max()) / 2
    tags = psla_jax.load(run.run_dir, trust=True, rules=Rules(thresholds, release=1.0)).tag(waveform, 48_000)
    assert tags.duration == pytest.approx(11.5)
    assert tags.notes == ()
    assert [event.mid for event in tags.events] == ["/t/low", "/t/high"]
    found = [(event.onset, event.offset) for event in tags.events]
    np.testing.assert_allclose(found, times, atol=0.64)  # a window
    assert tagger.tag(waveform[::3], 16_000).notes == (
        "the array was sampled at 16000 Hz: it has nothing above 8000 Hz, and the model was trained with sound up to "
        "16000 Hz.",
    )


def test_a_stream_has_the_events_of_the_recording(tagger):
    rng = np.random.default_rng(9)
    waveform = np.concatenate([sound(kind, 1.6, rng, 44_100) for kind in (2, 0, 1, 2)])
    with Stream(tagger, 44_100) as stream:
        updates = [u for i in range(0, len(waveform), 7000) for u in stream.push(waveform[i : i + 7000])]
        updates += stream.close()
    ended = sorted((u.event.onset, u.event.mid, u.event.offset) for u in updates if u.kind == "end")
    expected = sorted((event.onset, event.mid, event.offset) for event in tagger.tag(waveform, 44_100).events)
    assert [mid for _, mid, _ in ended] == [mid for _, mid, _ in expected]
    times = [[(onset, offset) for onset, _, offset in events] for events in (ended, expected)]
    np.testing.assert_allclose(*times, atol=0.01)  # A resampler of blocks gives a few samples more or fewer.


def test_models_of_two_rates_make_an_ensemble_of_recordings_but_not_of_streams(run, tagger, tmp_path):
    low = tiny.save(tmp_path / "low", "tiny:build", frontend=FrontendConfig(64))
    both = psla_jax.load([run.run_dir, low], trust=True)
    one = psla_jax.load(low, trust=True)
    waveform = sound(0, 2.1, np.random.default_rng(1), 44_100)
    path = tmp_path / "a.wav"
    soundfile.write(path, waveform, 44_100, subtype="FLOAT")
    for audio in ((waveform, 44_100), path):
        parts = [each.timeline(audio).scores.astype(np.float32) for each in (tagger, one)]
        np.testing.assert_allclose(both.timeline(audio).scores, np.mean(parts, axis=0), atol=2e-3)
        assert both.tag(audio).duration == pytest.approx(2.1)
    with pytest.raises(StreamError, match="sound at 32000 and 16000 Hz: use models of one"):
        Stream(both)
    other = tiny.save(tmp_path / "other", "tiny:build", frontend=FrontendConfig(64, hop=12.5))
    with pytest.raises(TaggerError, match=r"last 0.32 s, and those of .*other 0.4 s: an ensemble needs"):
        psla_jax.load([low, other], trust=True)


def test_measured_statistics_are_recorded_and_a_resumed_run_takes_them(run, high):
    directory = Path(run.run_dir)
    recorded = json.loads((directory / "config.json").read_text())["frontend"]
    frontend = Frontend(48, sample_rate=RATE, num_mels=64)
    values = []
    for path in sorted(high.glob("train*.wav")):
        waveform = decode.read(path, sample_rate=RATE)
        frames = 1 + (min(len(waveform), frontend.num_samples) - 800) // 320
        values.append(np.asarray(frontend.log_mel((waveform - waveform.mean())[None]))[0, :frames].ravel())
    joined = np.concatenate(values).astype(np.float64)
    assert (recorded["mean"], recorded["std"]) == pytest.approx((joined.mean(), joined.std()), abs=1e-4)
    card = read_card(directory / "models" / "average")
    assert (card.frontend.mean, card.frontend.std) == (recorded["mean"], recorded["std"])
    log = (directory / "log.txt").read_text()
    assert f"48 training clips: mean {recorded['mean']} and standard deviation {recorded['std']}" in log
    before = (directory / "result.csv").read_bytes()
    loop.train(run)
    assert (directory / "result.csv").read_bytes() == before
    assert (directory / "log.txt").read_text().count("training clips: mean") == 1
    with pytest.raises(RunError, match=r"frontend.mean: -.* -> -4.6476"):
        loop.train(config(high, directory, frontend=FrontendConfig(48, std="auto", sample_rate=RATE, num_mels=64)))


@pytest.mark.parametrize("samples", [100, 8000])
def test_statistics_of_nothing_are_refused(tmp_path, samples):
    data = sounds.make(tmp_path / "data")
    for path in (tmp_path / "data").glob("train*.wav"):
        decode.write_pcm16(path, np.zeros(samples, np.float32))
    frontend = FrontendConfig(target_length=40, std="auto")
    with pytest.raises(datasets.DataError, match=r"train.json has (no clip as long as a frame|only silence): correct"):
        loop.train(sounds.config(data, tmp_path / "run", frontend=frontend))
    assert not (tmp_path / "run" / "config.json").exists()


def test_files_of_a_lower_rate_are_noted_before_training_and_in_evaluations(run, tmp_path, capsys):
    data = sounds.make(tmp_path / "data")
    settings = config(data, tmp_path / "run").data
    lines: list[str] = []
    datasets.check_clips(datasets.load(settings, "auto"), settings, lines.append, SETTINGS)
    assert lines[0].startswith(
        "train set: 26 of 26 clips have a lower sample rate than the 32000 Hz of the features (26 at 16000 Hz) and "
    )
    assert [line.partition(":")[0] for line in lines] == ["train set", "validation set", "evaluation set"]
    datasets.check_clips(datasets.load(settings, "auto"), settings, lines.append)
    assert len(lines) == 3
    for windows in (False, True):
        psla_jax.evaluate(run.run_dir, data / "evaluation.json", trust=True, bootstrap=0, windows=windows)
        assert "as their sample rate is lower" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("mels", [40, 64, 256])
@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-b7", "resnet50", "mobilenet-v2"])
def test_backbones_take_spectrograms_of_any_height(name, mels):
    model = nnx.eval_shape(lambda: build_model(name, num_classes=5, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    spectrograms = jax.ShapeDtypeStruct((2, 96, mels), jnp.float32)
    features = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).backbone(x), state, spectrograms)
    assert features.shape == (2, 3, model.backbone.num_features)
    assert jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, spectrograms).shape == (2, 5)
