"""Normalised log-mel spectrograms of waveforms, computed on the device of the model.

The features are those of Kaldi's ``compute-fbank-feats`` as ``torchaudio.compliance.kaldi.fbank`` computes them with
``htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128, dither=0``. By default, at 16 kHz:
frames of 25 ms every 10 ms, the mean of each frame removed, pre-emphasis 0.97, symmetric Hann window, power spectrum of
512 points, 128 triangular filters from 20 Hz to 8 kHz, logarithm with a floor (PSLA, section III-A). All of these
numbers but the pre-emphasis are settings in :class:`psla_jax.config.FrontendConfig`, or follow from them.

From the frame to its power spectrum, the computation is in float64 where the platform supports it. A full-scale tone
leaks into distant bins at 120 dB below its peak, near the rounding of float32, where a float32 transform is wrong by
some hundredths of a log unit. The transform consists of two small matrix products instead of an FFT, because XLA does
not partition an FFT over the devices of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from psla_jax.config import FrontendConfig
from psla_jax.runtime.traced_devices import traced_devices

_RADIX = 16
PRE_EMPHASIS = 0.97
FLOOR = 1.1920929e-07
"""Coefficient of the previous sample, and smallest energy of a mel bin."""


class FrontendError(ValueError):
    """Waveforms or lengths of unsuitable shape or type; the message names them and the remedy."""


@dataclass(frozen=True)
class Frontend(FrontendConfig):
    """Log-mel features of fixed length. Hashable, so that it can be a static argument of a jitted function."""

    mean: float = -4.6476
    std: float = 4.5699

    def __post_init__(self) -> None:
        FrontendConfig(**dataclasses.asdict(self))  # Its errors name the setting of the run.
        if "auto" in (self.mean, self.std):
            raise FrontendError("mean or std is auto, which only a training measures: give numbers.")

    @classmethod
    def from_config(cls, config: FrontendConfig) -> Frontend:
        """Returns the frontend with the settings of a run."""
        return cls(**dataclasses.asdict(config))

    def num_frames(self, lengths: jax.Array | np.ndarray) -> jax.Array:
        """Returns how many frames lie completely within clips of these numbers of samples, ``(batch,)``."""
        frames = 1 + (lengths - self.window_samples) // self.hop_samples
        return jnp.where(lengths < self.window_samples, 0, frames)

    def log_mel(self, waveforms: ArrayLike, lengths: ArrayLike | None = None) -> jax.Array:
        """Returns log-mel features ``(batch, target_length, num_mels)`` before normalisation, as float32, for masking.

        Frames that do not lie completely within their clip are 0.

        Args:
            waveforms: ``(batch, samples)`` at the sample rate, in [-1, 1]. The mean of each clip should be zero,
                although only rounding depends on it, because the mean of each frame is removed too.
            lengths: ``(batch,)`` valid samples of each clip; the rest of its row is ignored. None: the whole row.

        Raises:
            FrontendError: if the shapes do not match, or the samples are integers.
        """
        return _log_mel(_float32(waveforms), _valid_lengths(waveforms, lengths), self._features)

    @property
    def _features(self) -> Frontend:
        """The settings of the features before normalisation: frontends that differ in it share a program."""
        return dataclasses.replace(self, mean=0.0, std=1.0)

    def normalise(self, x: jax.Array) -> jax.Array:
        """Returns ``(x - mean) / std``; padding and masks, which are 0 in `x`, become ``-mean / std``."""
        return (x - self.mean) / self.std

    def __call__(self, waveforms: ArrayLike, lengths: ArrayLike | None = None, *, zero_mean: bool = True) -> jax.Array:
        """Returns normalised log-mel features ``(batch, target_length, num_mels)``, as float32.

        Args:
            waveforms: as for :meth:`log_mel`, with any mean unless ``zero_mean`` is False.
            lengths: as for :meth:`log_mel`.
            zero_mean: subtract the mean of each clip's valid samples first, as the reference does. Pass False for
                waveforms whose mean has already been removed, as by the data loader.
        """
        lengths = _valid_lengths(waveforms, lengths)
        return self.normalise(
            self.log_mel(_zero_mean(_float32(waveforms), lengths) if zero_mean else waveforms, lengths)
        )


def _valid_lengths(waveforms: ArrayLike, lengths: ArrayLike | None) -> ArrayLike:
    """Returns `lengths`, or those of whole rows if None; raises FrontendError for unsuitable arguments."""
    shape = jnp.shape(waveforms)
    if len(shape) != 2 or (lengths is not None and jnp.shape(lengths) != shape[:1]):
        given = None if lengths is None else jnp.shape(lengths)
        raise FrontendError(f"waveforms have shape {shape} and lengths {given}: pass (batch, samples) and (batch,).")
    if not jnp.issubdtype(jnp.result_type(waveforms), jnp.floating):
        raise FrontendError(f"waveforms are {jnp.result_type(waveforms)}: scale them to floats in [-1, 1].")
    return np.full(shape[0], shape[1], np.int32) if lengths is None else lengths


def _float32(waveforms: ArrayLike) -> ArrayLike:
    """Converts other types on the host: XLA has no conversion of float16 for processors without F16C."""
    unchanged = isinstance(waveforms, jax.core.Tracer) or jnp.result_type(waveforms) == jnp.float32
    return waveforms if unchanged else np.asarray(waveforms, np.float32)


@jax.jit
def _zero_mean(waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
    """Subtracts from each row the mean of its valid samples, in float32; the padding becomes 0."""
    waveforms = jnp.asarray(waveforms, jnp.float32)
    valid = jnp.arange(waveforms.shape[1]) < lengths[:, None]
    mean = jnp.mean(waveforms, axis=1, where=valid, keepdims=True)
    return jnp.where(valid, waveforms - mean, 0.0)


@functools.partial(jax.jit, static_argnums=2)
def _log_mel(waveforms: jax.Array, lengths: jax.Array, frontend: Frontend) -> jax.Array:
    waveforms = jnp.asarray(waveforms, jnp.float32)
    double_on_cpu = functools.partial(_in_blocks, frontend=frontend, dtype=jnp.float64, rows=768)
    rows = 32_768 * traced_devices().number
    double = functools.partial(_in_blocks, frontend=frontend, dtype=jnp.float64, rows=rows)
    single = functools.partial(_in_blocks, frontend=frontend, dtype=jnp.float32, rows=rows)
    mels = lax.platform_dependent(waveforms, cpu=double_on_cpu, cuda=double, rocm=double, default=single)
    count = frontend.num_frames(jnp.minimum(lengths, waveforms.shape[1]))
    return jnp.where((jnp.arange(frontend.target_length) < count[:, None])[..., None], mels, 0.0)


def _in_blocks(waveforms: jax.Array, *, frontend: FrontendConfig, dtype: DTypeLike, rows: int) -> jax.Array:
    """Returns log-mels ``(batch, frames, mels)``, in blocks of about ``rows`` frames.

    A block fits into the cache of a CPU or the memory of an accelerator; the devices of a mesh divide its clips.
    """
    batch, frames, hop = waveforms.shape[0], frontend.target_length, frontend.hop_samples
    blocks = -(-frames * batch // rows) or 1
    size = -(-frames // blocks)
    blocks = -(-frames // size)
    further = -(-frontend.window_samples // hop) - 1  # Hops of the last frame after its first one.
    samples = hop * (blocks * size + further)
    waveforms = waveforms[:, :samples]
    padded = jnp.pad(waveforms, ((0, 0), (0, samples - waveforms.shape[1])))
    hops = padded.reshape(batch, blocks * size + further, hop)

    def block(index: jax.Array) -> jax.Array:
        return _block(lax.dynamic_slice_in_dim(hops, index * size, size + further, axis=1), frontend, dtype)

    mels = lax.map(block, jnp.arange(blocks, dtype=jnp.int32))
    return jnp.moveaxis(mels, 0, 1).reshape(batch, blocks * size, frontend.num_mels)[:, :frames]


def _block(hops: jax.Array, frontend: FrontendConfig, dtype: DTypeLike) -> jax.Array:
    """Returns the log-mels of all frames within hops ``(batch, n, samples of a hop)``.

    By default a frame consists of two and a half hops. Clips and frames are the last axes throughout, so that no
    product needs a transposed copy of its input and a batch sharded over devices stays sharded.
    """
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.transpose(hops, (2, 0, 1)).astype(dtype)
        x = _frames(x, frontend.window_samples)
        x = x - jnp.mean(x, axis=0)
        x = x - PRE_EMPHASIS * jnp.concatenate([x[:1], x[:-1]], axis=0)
        power = _power(x, frontend.fft_size).astype(jnp.float32)
    energy = jnp.tensordot(_filters(frontend), power, 1, precision=lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energy, FLOOR)).transpose(1, 2, 0)


def _frames(hops: jax.Array, window: int) -> jax.Array:
    """Joins consecutive hops ``(samples of a hop, batch, n)`` to frames ``(window, batch, number of frames)``."""
    hop, _, n = hops.shape
    count = -(-window // hop)
    parts = [hops[..., i : n - count + 1 + i] for i in range(count)]
    return jnp.concatenate([*parts[:-1], parts[-1][: window - hop * (count - 1)]], axis=0)


def _power(x: jax.Array, fft_size: int) -> jax.Array:
    """Returns the power ``(bins, batch, n)`` of frames ``(window, batch, n)``: window, DFT, squared magnitude.

    With stride ``s``, a 16th of the points of the DFT, sample index ``16a + b`` and bin ``k + sj``, the first product
    sums over ``a`` and needs only ``s / 2 + 1`` values of ``k``, because the input is real; the second one sums over
    ``b``. :func:`_bins` gives the order of the bins.
    """
    window, *clips_and_frames = x.shape
    first, second = (matrix.astype(x.dtype) for matrix in _transforms(window, fft_size))
    if window % _RADIX:
        x = jnp.pad(x, ((0, -window % _RADIX), (0, 0), (0, 0)))
    x = x.reshape(first.shape[2], _RADIX, *clips_and_frames)
    x = lax.dot_general(first, x, (((2,), (0,)), ((0,), (1,))), precision=lax.Precision.HIGHEST)
    half = first.shape[1] // 2
    x = x.reshape(_RADIX, 2, half, *clips_and_frames)
    real, imaginary = jnp.tensordot(second, x, 2, precision=lax.Precision.HIGHEST)
    return (real * real + imaginary * imaginary).reshape(_RADIX * half, *clips_and_frames)


def _bins(fft_size: int) -> np.ndarray:
    """Returns the DFT bin in each row of :func:`_power`, ``(16, n)``; those above the half are replaced by mirrors."""
    stride = fft_size // _RADIX
    bins = np.arange(stride // 2 + 1) + stride * np.arange(_RADIX)[:, None]
    return np.where(bins > fft_size // 2, fft_size - bins, bins)


@functools.lru_cache
def _transforms(window: int, fft_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices of the DFT: with Hann window and twiddle factors, and ``(2, 16, 16, 2)``.

    The first one is ``(16, 2n, window / 16)`` for ``n`` values of ``k``; it is 0 for the samples of its last column
    beyond the window.
    """
    half = fft_size // _RADIX // 2 + 1
    sample = np.arange(window + -window % _RADIX).reshape(-1, _RADIX).T
    hann = np.where(sample < window, 0.5 - 0.5 * np.cos(2 * np.pi * sample / (window - 1)), 0.0)
    turns = np.arange(half)[:, None] * sample[:, None] % fft_size / fft_size
    first = np.concatenate([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1) * hann[:, None]
    turns = np.outer(np.arange(_RADIX), np.arange(_RADIX)) % _RADIX / _RADIX
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return first, np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)])


@functools.lru_cache
def mel_filters(frontend: FrontendConfig) -> np.ndarray:
    """Returns triangular filters ``(mels, bins)`` on Kaldi's mel scale; the bin at half the sample rate has weight 0.

    Each operation is rounded to float32 as in torchaudio: near the edge of a filter, the rounding of the mel scale
    changes a weight by 0.16 %, which exceeds the tolerance of the features.
    """
    f32 = np.float32
    low, high = (1127.0 * np.log(1.0 + hz / 700.0) for hz in (frontend.low_hz, frontend.top_hz))
    delta = (high - low) / (frontend.num_mels + 1)
    bins = np.arange(frontend.fft_size // 2, dtype=f32)
    ratio = f32(1) + f32(frontend.sample_rate / frontend.fft_size) * bins / f32(700)
    mel = f32(1127) * np.log(ratio.astype(np.float64)).astype(f32)
    index = np.arange(frontend.num_mels, dtype=f32)[:, None]
    left, centre, right = (f32(low) + (index + f32(i)) * f32(delta) for i in range(3))
    return np.maximum(np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)), f32(0))


@functools.lru_cache
def _filters(frontend: FrontendConfig) -> np.ndarray:
    """Returns the mel filters in the bin order of :func:`_power`; repeated bins have weight 0."""
    bins = _bins(frontend.fft_size).ravel()
    _, first = np.unique(bins, return_index=True)
    first = first[bins[first] < frontend.fft_size // 2]
    weights = np.zeros((frontend.num_mels, bins.size), np.float32)
    weights[:, first] = mel_filters(frontend)[:, bins[first]]
    return weights
