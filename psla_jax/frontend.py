"""Waveforms to normalised log-mel spectrograms, on the device the model runs on.

The features are those of Kaldi's ``compute-fbank-feats`` as ``torchaudio.compliance.kaldi.fbank`` computes them with
``htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128, dither=0`` at 16 kHz: frames of 25 ms
every 10 ms, the mean of each frame removed, pre-emphasis 0.97, symmetric Hann window, power spectrum of 512 points,
128 triangular filters from 20 Hz to 8 kHz, logarithm with a floor (PSLA, section III-A).

Between the frame and its power everything is float64 where the platform has it. A full-scale tone leaks into far bins
at 120 dB below its peak, near the rounding of float32, where a float32 transform is wrong by some hundredths of a log
unit. The transform is two short matrix products and not an FFT, which XLA would not split over the devices of a batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from psla_jax.config import FrontendConfig

SAMPLE_RATE = 16_000
FRAME_LENGTH = 400
FRAME_SHIFT = 160
NUM_MELS = 128

_FFT = 512
_RESIDUES = 16
_STEPS = _FFT // _RESIDUES
_HALF = _STEPS // 2 + 1
_PRE_EMPHASIS = 0.97
_LOW_HZ = 20.0
_FLOOR = 1.1920929e-07


class FrontendError(ValueError):
    """Waveforms or lengths that do not fit together; the message names the shape and the remedy."""


@dataclass(frozen=True)
class Frontend:
    """Log-mel features of fixed length; hashable, so it can be closed over or passed as a static argument of a jit."""

    target_length: int = 1056
    """Frames per clip (10 ms each); longer clips are cut, shorter ones padded."""
    mean: float = -4.6476
    """Subtracted from the log-mel values."""
    std: float = 4.5699
    """Divided by afterwards."""

    def __post_init__(self) -> None:
        FrontendConfig(self.target_length, self.mean, self.std)

    @classmethod
    def from_config(cls, config: FrontendConfig) -> Frontend:
        """The frontend that a run's settings describe."""
        return cls(config.target_length, config.mean, config.std)

    @property
    def num_samples(self) -> int:
        """Samples that fill ``target_length`` frames; any beyond them are ignored."""
        return FRAME_LENGTH + FRAME_SHIFT * (self.target_length - 1)

    def log_mel(self, waveforms: ArrayLike, lengths: ArrayLike) -> jax.Array:
        """Log-mel energies before normalisation, where masks are applied.

        Args:
            waveforms: ``(batch, samples)`` at 16 kHz in [-1, 1], each clip already free of its mean.
            lengths: ``(batch,)`` samples that belong to each clip; the rest of its row is ignored.

        Returns:
            ``(batch, target_length, 128)`` float32. Frames that do not lie wholly inside their clip are 0.

        Raises:
            FrontendError: when the shapes do not fit together, or the samples are integers.
        """
        if jnp.ndim(waveforms) != 2 or jnp.shape(lengths) != jnp.shape(waveforms)[:1]:
            raise FrontendError(
                f"waveforms have shape {jnp.shape(waveforms)} and lengths {jnp.shape(lengths)}: "
                "pass (batch, samples) and (batch,)."
            )
        if not jnp.issubdtype(jnp.result_type(waveforms), jnp.floating):
            raise FrontendError(f"waveforms are {jnp.result_type(waveforms)}: scale them to floats in [-1, 1].")
        return _log_mel(waveforms, lengths, self.target_length)

    def normalise(self, x: jax.Array) -> jax.Array:
        """``(x - mean) / std``; padding and masks, which are 0 before, become ``-mean / std``."""
        return (x - self.mean) / self.std

    def __call__(self, waveforms: ArrayLike, lengths: ArrayLike) -> jax.Array:
        """Normalised log-mel features ``(batch, target_length, 128)``; arguments as for :meth:`log_mel`."""
        return self.normalise(self.log_mel(waveforms, lengths))


@functools.partial(jax.jit, static_argnums=2)
def _log_mel(waveforms: jax.Array, lengths: jax.Array, frames: int) -> jax.Array:
    waveforms = jnp.asarray(waveforms, jnp.float32)
    double_on_cpu = functools.partial(_in_blocks, frames=frames, dtype=jnp.float64, rows=768)
    double = functools.partial(_in_blocks, frames=frames, dtype=jnp.float64, rows=32_768)
    single = functools.partial(_in_blocks, frames=frames, dtype=jnp.float32, rows=32_768)
    mels = lax.platform_dependent(waveforms, cpu=double_on_cpu, cuda=double, rocm=double, default=single)
    lengths = jnp.minimum(lengths, waveforms.shape[1])
    count = jnp.where(lengths < FRAME_LENGTH, 0, 1 + (lengths - FRAME_LENGTH) // FRAME_SHIFT)
    return jnp.where((jnp.arange(frames) < count[:, None])[..., None], mels, 0.0)


def _in_blocks(waveforms: jax.Array, *, frames: int, dtype: DTypeLike, rows: int) -> jax.Array:
    """Log-mels ``(batch, frames, 128)``, about ``rows`` frames at a time, so that temporaries stay in the cache."""
    batch = waveforms.shape[0]
    blocks = -(-frames * batch // rows) or 1
    size = -(-frames // blocks)
    blocks = -(-frames // size)
    samples = FRAME_SHIFT * (blocks * size + 2)
    waveforms = waveforms[:, :samples]
    padded = jnp.pad(waveforms, ((0, 0), (0, samples - waveforms.shape[1])))
    hops = padded.reshape(batch, blocks * size + 2, FRAME_SHIFT)

    def block(index: jax.Array) -> jax.Array:
        return _block(lax.dynamic_slice_in_dim(hops, index * size, size + 2, axis=1), dtype)

    mels = lax.map(block, jnp.arange(blocks, dtype=jnp.int32))
    return jnp.moveaxis(mels, 0, 1).reshape(batch, blocks * size, NUM_MELS)[:, :frames]


def _block(hops: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Log-mels ``(batch, n - 2, 128)`` of hops ``(batch, n, 160)``: a frame is two hops and a half.

    Clips and frames are the last axes throughout: no product needs a transposed copy of its input, and a batch that is
    split over devices stays split.
    """
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.transpose(hops, (2, 0, 1)).astype(dtype)
        x = jnp.concatenate([x[..., :-2], x[..., 1:-1], x[: FRAME_LENGTH - 2 * FRAME_SHIFT, :, 2:]], axis=0)
        x = x - jnp.mean(x, axis=0)
        x = x - _PRE_EMPHASIS * jnp.concatenate([x[:1], x[:-1]], axis=0)
        power = _power(x).astype(jnp.float32)
    energy = jnp.tensordot(_filters(), power, 1, precision=lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energy, _FLOOR)).transpose(1, 2, 0)


def _power(x: jax.Array) -> jax.Array:
    """Power ``(272, batch, n)`` of frames ``(400, batch, n)``: window, 512-point transform, squared magnitude.

    Of sample ``16a + b`` and bin ``k + 32j``, the first product sums over ``a`` and needs only 17 values of ``k``,
    because the input is real; the second sums over ``b``. The order of the bins is that of :func:`_bins`.
    """
    first, second = (matrix.astype(x.dtype) for matrix in _transforms())
    clips_and_frames = x.shape[1:]
    x = x.reshape(FRAME_LENGTH // _RESIDUES, _RESIDUES, *clips_and_frames)
    x = lax.dot_general(first, x, (((2,), (0,)), ((0,), (1,))), precision=lax.Precision.HIGHEST)
    x = x.reshape(_RESIDUES, 2, _HALF, *clips_and_frames)
    real, imaginary = jnp.tensordot(second, x, 2, precision=lax.Precision.HIGHEST)
    return (real * real + imaginary * imaginary).reshape(_RESIDUES * _HALF, *clips_and_frames)


def _bins() -> np.ndarray:
    """The bin of the 512-point transform in each row of the power, ``(16, 17)``; those above 256 mirror the others."""
    bins = np.arange(_HALF) + _STEPS * np.arange(_RESIDUES)[:, None]
    return np.where(bins > _FFT // 2, _FFT - bins, bins)


@functools.lru_cache
def _transforms() -> tuple[np.ndarray, np.ndarray]:
    """The two matrices of the transform: ``(16, 2 * 17, 25)`` with window and twiddles, and ``(2, 16, 16, 2)``."""
    sample = np.arange(FRAME_LENGTH).reshape(-1, _RESIDUES).T
    window = 0.5 - 0.5 * np.cos(2 * np.pi * sample / (FRAME_LENGTH - 1))
    turns = np.arange(_HALF)[:, None] * sample[:, None] % _FFT / _FFT
    first = np.concatenate([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1) * window[:, None]
    turns = np.outer(np.arange(_RESIDUES), np.arange(_RESIDUES)) % _RESIDUES / _RESIDUES
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return first, np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)])


@functools.lru_cache
def _mel_filters() -> np.ndarray:
    """Triangular filters ``(128, 256)`` on Kaldi's mel scale, bins 0 to 255; bin 256, at 8 kHz, weighs nothing.

    Each step is rounded to float32 as in torchaudio: near the edge of a filter the rounding of the mel scale moves a
    weight by 0.16 %, which is more than the features may differ.
    """
    f32 = np.float32
    low, high = (1127.0 * np.log(1.0 + hz / 700.0) for hz in (_LOW_HZ, SAMPLE_RATE / 2))
    delta = (high - low) / (NUM_MELS + 1)
    ratio = f32(1) + f32(SAMPLE_RATE / _FFT) * np.arange(_FFT // 2, dtype=f32) / f32(700)
    mel = f32(1127) * np.log(ratio.astype(np.float64)).astype(f32)
    index = np.arange(NUM_MELS, dtype=f32)[:, None]
    left, centre, right = (f32(low) + (index + f32(i)) * f32(delta) for i in range(3))
    return np.maximum(np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)), f32(0))


@functools.lru_cache
def _filters() -> np.ndarray:
    """The mel filters in the order of :func:`_power`, ``(128, 272)``; a bin that occurs twice counts once."""
    bins = _bins().ravel()
    _, first = np.unique(bins, return_index=True)
    first = first[bins[first] < _FFT // 2]
    weights = np.zeros((NUM_MELS, bins.size), np.float32)
    weights[:, first] = _mel_filters()[:, bins[first]]
    return weights
