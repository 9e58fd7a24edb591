"""The frontend against stored Kaldi features of torchaudio and, for every frame, against NumPy in float64.

``scripts/make_fbank_fixtures.py`` generates the fixture; its table covers more lengths and real recordings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax.audio.frontend import Frontend, FrontendError, _filters, _in_blocks, _zero_mean, mel_filters
from psla_jax.config import ConfigError, FrontendConfig
from psla_jax.runtime.traced_devices import traced_for

FIXTURE = Path(__file__).parents[1] / "fixtures" / "fbank.npz"
TOLERANCE = 1e-3
"""Largest difference from torchaudio's float32 features, in log-mel units."""


@dataclass(frozen=True)
class Case:
    """A stored signal with torchaudio's features of selected frames, in float64 and in float32."""

    waveform: np.ndarray
    frames: np.ndarray
    double: np.ndarray
    single: np.ndarray


@pytest.fixture(scope="module")
def filters() -> np.ndarray:
    with np.load(FIXTURE) as stored:
        return stored["mel_filters"]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    with np.load(FIXTURE) as stored:
        names = sorted({key.partition("/")[0] for key in stored.files if "/" in key})
        return {name: read_case(stored, name) for name in names}


def read_case(stored: np.lib.npyio.NpzFile, name: str) -> Case:
    period, double = stored[f"{name}/period"], stored[f"{name}/double"]
    scale = np.float32(32768 if period.dtype == np.int16 else 1)
    waveform = np.resize(period, int(stored[f"{name}/length"])).astype(np.float32) / scale
    return Case(waveform, stored[f"{name}/frames"], double, double + stored[f"{name}/single_error"])


def padded(waveforms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(w) for w in waveforms])
    return np.stack([np.pad(w, (0, lengths.max() - len(w))) for w in waveforms]), lengths


@pytest.fixture(scope="module")
def features(cases: dict[str, Case]) -> dict[str, np.ndarray]:
    """Log-mel features of all stored signals, which have seven lengths, computed as one batch."""
    waveforms, lengths = padded([case.waveform for case in cases.values()])
    return dict(zip(cases, np.asarray(Frontend(target_length=1200).log_mel(waveforms, lengths)), strict=True))


def kaldi(waveform: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Returns the log-mel features by definition, in float64."""
    count = 1 + (len(waveform) - 400) // 160
    x = np.stack([waveform[160 * i :][:400] for i in range(count)]).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    x -= 0.97 * np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(x * np.hanning(400), 512)[:, :256]) ** 2
    return np.log(np.maximum(power @ filters.T.astype(np.float64), np.finfo(np.float32).eps))


def test_the_fixture_has_signals_of_every_kind_and_length(cases: dict[str, Case]) -> None:
    assert len(cases) == 18
    assert {len(case.waveform) for case in cases.values()} == {400, 401, 559, 560, 16_000, 160_000, 192_000}


def test_torchaudio_and_the_definition_agree(cases: dict[str, Case], filters: np.ndarray) -> None:
    for name, case in cases.items():
        np.testing.assert_allclose(kaldi(case.waveform, filters)[case.frames], case.double, atol=3e-6, err_msg=name)


def test_every_frame_equals_the_float64_features(
    cases: dict[str, Case], features: dict[str, np.ndarray], filters: np.ndarray
) -> None:
    for name, case in cases.items():
        expected = kaldi(case.waveform, filters)
        np.testing.assert_allclose(features[name][: len(expected)], expected, atol=TOLERANCE / 100, err_msg=name)


def test_stored_frames_agree_with_torchaudio(cases: dict[str, Case], features: dict[str, np.ndarray]) -> None:
    """Where torchaudio's float32 is inaccurate, by 0.02 beside loud tones, only its float64 features are compared."""
    for name, case in cases.items():
        ours = features[name][case.frames]
        np.testing.assert_allclose(ours, case.double, atol=TOLERANCE / 100, err_msg=name)
        own_error = np.abs(case.single - case.double)
        assert (np.abs(ours - case.single) - own_error).max() < TOLERANCE / 100, name
        accurate = own_error < TOLERANCE / 2
        assert accurate.mean() > 0.5, name
        assert np.abs(ours - case.single)[accurate].max() < TOLERANCE, name


def test_frames_past_a_clip_are_zero(cases: dict[str, Case], features: dict[str, np.ndarray]) -> None:
    for name, case in cases.items():
        count = 1 + (len(case.waveform) - 400) // 160
        assert (features[name][:count] != 0).all(), name
        assert (features[name][count:] == 0).all(), name


def test_mel_filters_equal_torchaudios(filters: np.ndarray) -> None:
    assert ((mel_filters(FrontendConfig()) > 0) == (filters > 0)).all()
    np.testing.assert_allclose(mel_filters(FrontendConfig()), filters, rtol=3e-4)


def test_the_number_of_frames_depends_on_the_valid_samples_alone() -> None:
    lengths = np.array([0, 1, 399, 400, 559, 560, 1199, 1200, 1360, 10_000])
    waveforms = np.random.default_rng(0).standard_normal((len(lengths), 1360)).astype(np.float32)
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = np.nan
    mels = np.asarray(Frontend(target_length=7).log_mel(waveforms, lengths))
    assert np.isfinite(mels).all()
    assert (mels != 0).all(2).sum(1).tolist() == [0, 0, 0, 1, 1, 2, 5, 6, 7, 7]
    assert (mels != 0).any(2).sum(1).tolist() == [0, 0, 0, 1, 1, 2, 5, 6, 7, 7]


def test_target_length_only_cuts_and_pads() -> None:
    waveforms = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    lengths = np.array([4000, 2000])
    whole = np.asarray(Frontend(target_length=23).log_mel(waveforms, lengths))
    short, long = Frontend(target_length=5), Frontend(target_length=40)
    np.testing.assert_allclose(short.log_mel(waveforms, lengths), whole[:, :5], atol=1e-5)
    np.testing.assert_allclose(short.log_mel(waveforms[:, : short.num_samples], lengths), whole[:, :5], atol=1e-5)
    assert (np.asarray(short.log_mel(waveforms[:, : short.num_samples - 1], lengths))[:, 4] == 0).all()
    expected = np.pad(whole, ((0, 0), (0, 17), (0, 0)))
    np.testing.assert_allclose(long.log_mel(waveforms, lengths), expected, atol=1e-5)


def test_features_do_not_depend_on_the_block_size() -> None:
    waveforms = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8000)), jnp.float32)
    frontend = FrontendConfig(40)
    whole, *others = (_in_blocks(waveforms, frontend=frontend, dtype=jnp.float64, rows=rows) for rows in (1000, 1, 50))
    for blocks in others:
        np.testing.assert_allclose(blocks, whole, atol=1e-5)


def test_without_float64_only_the_leakage_of_loud_tones_is_inaccurate(
    cases: dict[str, Case], filters: np.ndarray
) -> None:
    names = ["quiet noise", "speech-like", "noise and offset", "tone 3005 Hz"]
    waveforms, _ = padded([cases[name].waveform[:1360] for name in names])
    mels = _in_blocks(jnp.asarray(waveforms), frontend=FrontendConfig(7), dtype=jnp.float32, rows=1000)
    for name, waveform, ours in zip(names, waveforms, np.asarray(mels), strict=True):
        count = 1 + (min(len(cases[name].waveform), 1360) - 400) // 160
        error = np.abs(ours[:count] - kaldi(waveform, filters)[:count]).max()
        assert error < (0.1 if name.startswith("tone") else TOLERANCE), name


def recipe_features(waveforms: np.ndarray, frames: int) -> jax.Array:
    """The default features as written for 16 kHz alone, with every number of the recipe in its place, for CPUs."""
    batch = len(waveforms)
    blocks = -(-frames * batch // 768) or 1
    size = -(-frames // blocks)
    blocks = -(-frames // size)
    samples = 160 * (blocks * size + 2)
    sample = np.arange(400).reshape(-1, 16).T
    turns = np.arange(17)[:, None] * sample[:, None] % 512 / 512
    window = 0.5 - 0.5 * np.cos(2 * np.pi * sample / 399)
    first = np.concatenate([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1) * window[:, None]
    turns = np.outer(np.arange(16), np.arange(16)) % 16 / 16
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    second = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)])
    highest = jax.lax.Precision.HIGHEST

    def block(hops: jax.Array) -> jax.Array:
        with jax.enable_x64(True):
            x = jnp.transpose(hops, (2, 0, 1)).astype(jnp.float64)
            x = jnp.concatenate([x[..., :-2], x[..., 1:-1], x[:80, :, 2:]], axis=0)
            x = x - jnp.mean(x, axis=0)
            x = x - 0.97 * jnp.concatenate([x[:1], x[:-1]], axis=0)
            shape = x.shape[1:]
            x = jax.lax.dot_general(first, x.reshape(25, 16, *shape), (((2,), (0,)), ((0,), (1,))), precision=highest)
            real, imaginary = jnp.tensordot(second, x.reshape(16, 2, 17, *shape), 2, precision=highest)
            power = (real * real + imaginary * imaginary).reshape(272, *shape).astype(jnp.float32)
        energy = jnp.tensordot(_filters(FrontendConfig()), power, 1, precision=highest)
        return jnp.log(jnp.maximum(energy, 1.1920929e-07)).transpose(1, 2, 0)

    @jax.jit
    def features(waveforms: jax.Array) -> jax.Array:
        waveforms = waveforms[:, :samples]
        padded = jnp.pad(waveforms, ((0, 0), (0, samples - waveforms.shape[1])))
        hops = padded.reshape(batch, blocks * size + 2, 160)
        cut = lambda i: jax.lax.dynamic_slice_in_dim(hops, i * size, size + 2, axis=1)  # noqa: E731
        mels = jax.lax.map(lambda i: block(cut(i)), jnp.arange(blocks, dtype=jnp.int32))
        return jnp.moveaxis(mels, 0, 1).reshape(batch, blocks * size, 128)[:, :frames]

    return features(waveforms)


@pytest.mark.parametrize("frames", [7, 298])
def test_the_default_features_are_bit_for_bit_those_of_the_recipe(frames: int) -> None:
    levels = np.array([[1], [1e-1], [1e-3], [1e-5], [0]])
    waveforms = (levels * np.random.default_rng(0).standard_normal((5, 48_000))).astype(np.float32)
    ours = np.asarray(Frontend(frames).log_mel(waveforms))
    np.testing.assert_array_equal(ours.view(np.int32), np.asarray(recipe_features(waveforms, frames)).view(np.int32))


SETTINGS: dict[str, dict] = {
    "32 kHz": {"sample_rate": 32_000},
    "PANNs": {"sample_rate": 32_000, "window": 32, "num_mels": 64, "low_hz": 50, "high_hz": 14_000},
    "fractions of a sample": {"sample_rate": 22_050, "window": 23.3, "hop": 11.61, "num_mels": 80},
    "no multiple of 16": {"sample_rate": 44_100},
    "gaps between frames": {"hop": 30, "window": 10, "num_mels": 32},
    "hop as long as the window": {"hop": 25, "num_mels": 64},
    "shortest": {"window": 1, "hop": 0.0625, "num_mels": 2},
    "tall": {"sample_rate": 32_000, "num_mels": 256, "window": 40, "hop": 12.5},
    "slow": {"sample_rate": 8000, "num_mels": 40, "low_hz": 0},
}


def kaldi_with(waveform: np.ndarray, config: FrontendConfig) -> np.ndarray:
    """Returns the features by Kaldi's definition for any settings, in float64."""
    window, hop = (int(config.sample_rate * ms / 1000 + 1e-9) for ms in (config.window, config.hop))
    size = 2 ** int(np.ceil(np.log2(window)))
    x = np.stack([waveform[i : i + window] for i in range(0, len(waveform) - window + 1, hop)]).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    x -= 0.97 * np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(x * np.hanning(window), size)[:, : size // 2]) ** 2
    high = config.high_hz or config.sample_rate / 2
    points = 1127 * np.log1p(np.array([config.low_hz, high]) / 700)
    edges = np.linspace(*points, config.num_mels + 2)
    mel = 1127 * np.log1p(np.arange(size // 2) * config.sample_rate / size / 700)
    rising = (mel - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - mel) / np.diff(edges)[1:, None]
    filters = np.maximum(np.minimum(rising, falling), 0)
    assert (filters.sum(axis=1) == 0).sum() == config.num_empty_mels
    return np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_equal_kaldis_definition(name: str) -> None:
    frontend = Frontend(20, **SETTINGS[name])
    rng = np.random.default_rng(0)
    waveform = (0.1 * rng.standard_normal(frontend.num_samples)).astype(np.float32)
    expected = kaldi_with(waveform, frontend)
    assert expected.shape == (20, frontend.num_mels)
    shorter = frontend.num_samples - 1
    ours = np.asarray(frontend.log_mel(np.stack([waveform] * 2), np.array([len(waveform), shorter], np.int32)))
    np.testing.assert_allclose(ours[0], expected, atol=TOLERANCE)
    np.testing.assert_array_equal(ours[1, :19], ours[0, :19])
    assert (ours[1, 19] == 0).all()


def test_a_mean_that_is_not_measured_yet_is_refused() -> None:
    with pytest.raises(FrontendError, match="auto"):
        Frontend.from_config(FrontendConfig(mean="auto"))


def test_normalisation_comes_after_padding() -> None:
    frontend = Frontend(target_length=3, mean=-4.0, std=2.0)
    waveforms = np.random.default_rng(0).standard_normal((1, 560)).astype(np.float32)
    out = np.asarray(frontend(waveforms, np.array([560])))
    np.testing.assert_allclose(out, (np.asarray(frontend.log_mel(waveforms, np.array([560]))) + 4) / 2, atol=1e-6)
    assert (out[0, 2] == 2).all()
    assert Frontend().normalise(jnp.zeros(())) == pytest.approx(1.017, abs=1e-3)


def with_offsets() -> tuple[np.ndarray, np.ndarray]:
    """Waveforms `(4, 3000)` whose means are not zero, with arbitrary values in the padding, and their lengths."""
    rng = np.random.default_rng(0)
    waveforms = rng.normal([[0.3], [-0.2], [0.5], [0.1]], 0.1, (4, 3000)).astype(np.float32)
    return waveforms, np.array([3000, 1234, 0, 5000], np.int32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_of_the_valid_samples_is_removed(dtype: type) -> None:
    waveforms, lengths = with_offsets()
    zero_mean = np.asarray(_zero_mean(waveforms.astype(dtype), lengths))
    assert zero_mean.dtype == np.float32
    for row, waveform, length in zip(zero_mean, waveforms.astype(np.float64), lengths, strict=True):
        valid = waveform[:length]
        np.testing.assert_allclose(row[: len(valid)], valid - valid.mean() if length else valid, atol=1e-6)
        assert (row[length:] == 0).all()


def test_the_mean_is_removed_unless_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, (waveforms, lengths) = Frontend(20), with_offsets()
    zero_mean = np.zeros_like(waveforms)
    for row, waveform, length in zip(zero_mean, waveforms, lengths, strict=True):
        row[:length] = waveform[:length] - (waveform[:length].mean(dtype=np.float64) if length else 0)
    expected = frontend(zero_mean, lengths, zero_mean=False)
    np.testing.assert_allclose(frontend(waveforms, lengths), expected, atol=1e-4)
    # The features depend on the mean only by rounding, so that the call itself has to be observed.
    monkeypatch.setattr("psla_jax.audio.frontend._zero_mean", lambda waveforms, lengths: zero_mean)
    np.testing.assert_array_equal(frontend(2 * waveforms, lengths), expected)
    assert np.abs(frontend(2 * waveforms, lengths, zero_mean=False) - expected)[0].max() > 0.1


def test_without_lengths_all_samples_are_valid() -> None:
    frontend, (waveforms, _) = Frontend(20), with_offsets()
    whole = np.full(4, 3000)
    np.testing.assert_array_equal(frontend(waveforms), frontend(waveforms, whole))
    np.testing.assert_array_equal(frontend.log_mel(waveforms), frontend.log_mel(waveforms, whole))


def test_frontends_are_hashable_values() -> None:
    assert Frontend.from_config(FrontendConfig(target_length=3000, std=4.0)) == Frontend(3000, std=4.0)
    assert len({Frontend(), Frontend(), Frontend(7)}) == 2
    assert Frontend().num_samples == 400 + 160 * 1055
    call = jax.jit(lambda frontend, x, n: frontend(x, n), static_argnums=0)
    assert call(Frontend(2), np.zeros((1, 560), np.float32), np.array([560])).shape == (1, 2, 128)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_features_are_float32_whatever_comes_in(dtype: type) -> None:
    waveforms, lengths = np.ones((1, 400), dtype), np.array([400])
    assert Frontend(2)(waveforms, lengths).dtype == np.float32
    with jax.enable_x64(True):
        assert Frontend(2)(jnp.asarray(waveforms), jnp.asarray(lengths)).dtype == np.float32


def test_unsuitable_waveforms_and_lengths_are_refused() -> None:
    for lengths in (np.array([400]), None):
        with pytest.raises(FrontendError, match=r"\(400,\)"):
            Frontend(2)(np.zeros(400, np.float32), lengths)
    with pytest.raises(FrontendError, match=r"\(2,\)"):
        Frontend(2)(np.zeros((1, 400), np.float32), np.array([400, 400]))
    with pytest.raises(FrontendError, match="int16"):
        Frontend(2)(np.zeros((1, 400), np.int16), np.array([400]))
    with pytest.raises(ConfigError, match="target_length"):
        Frontend(0)
    assert Frontend(2)(np.zeros((0, 400), np.float32), np.zeros(0, np.int32)).shape == (0, 2, 128)


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from psla_jax.audio.frontend import Frontend
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
waveforms = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
arrays = jax.device_put((waveforms, np.array([1000, 800, 400, 0], np.int32)), sharding)
compiled = jax.jit(Frontend(5)).lower(*arrays).compile()
out = compiled(*arrays)
assert out.sharding.is_equivalent_to(sharding, 3), out.sharding
np.testing.assert_allclose(out, Frontend(5)(*map(np.asarray, arrays)), atol=1e-5)
text = compiled.as_text()
assert not [op for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if f" {op}" in text]
"""


def test_a_batch_split_over_devices_stays_split() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("clips", "devices"), [(96, 1), (768, 8)])
def test_blocks_of_accelerators_have_the_frames_of_the_clips_of_one_device(clips: int, devices: int) -> None:
    waveforms = jax.ShapeDtypeStruct((clips, Frontend().num_samples), jnp.float32)
    with traced_for("gpu", devices):
        program = str(jax.make_jaxpr(Frontend().log_mel)(waveforms))
    on_cpu, *others = sorted({int(length) for length in re.findall(r"\blength=(\d+)", program)}, reverse=True)
    assert on_cpu == -(-clips * 1056 // 768)
    assert others == [4]  # 96 clips of 1056 frames in blocks of at most 32,768 frames
