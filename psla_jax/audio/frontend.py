"""Normalised log-mel spectrograms of waveforms, computed on the device of the model.

The features are those of Kaldi's ``compute-fbank-feats`` as ``torchaudio.compliance.kaldi.fbank`` computes them with
``htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128, dither=0`` at 16 kHz: frames of 25 ms
every 10 ms, the mean of each frame removed, pre-emphasis 0.97, symmetric Hann window, power spectrum of 512 points,
128 triangular filters from 20 Hz to 8 kHz, logarithm with a floor (PSLA, section III-A).

From the frame to its power spectrum, the computation is in float64 where the platform supports it. A full-scale tone
leaks into distant bins at 120 dB below its peak, near the rounding of float32, where a float32 transform is wrong by
some hundredths of a log unit. The transform consists of two small matrix products instead of an FFT, because XLA does
not partition an FFT over the devices of a batch.
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
"""Sample rate in Hz."""
FRAME_LENGTH = 400
"""Samples per frame, 25 ms."""
FRAME_SHIFT = 160
"""Samples between the starts of consecutive frames, 10 ms."""
NUM_MELS = 128

_FFT_SIZE = 512
_RADIX = 16
_STRIDE = _FFT_SIZE // _RADIX
_HALF = _STRIDE // 2 + 1
_PRE_EMPHASIS = 0.97
_LOW_HZ = 20.0
_FLOOR = 1.1920929e-07


class FrontendError(ValueError):
    """Waveforms or lengths of unsuitable shape or type; the message names them and the remedy."""


@dataclass(frozen=True)
class Frontend(FrontendConfig):
    """Log-mel features of fixed length. Hashable, so that it can be a static argument of a jitted function."""

    def __post_init__(self) -> None:
        FrontendConfig(self.target_length, self.mean, self.std)  # Its errors name the setting of the run.

    @classmethod
    def from_config(cls, config: FrontendConfig) -> Frontend:
        """Returns the frontend with the settings of a run."""
        return cls(config.target_length, config.mean, config.std)

    @property
    def num_samples(self) -> int:
        """Number of samples in ``target_length`` frames; samples beyond them are ignored."""
        return FRAME_LENGTH + FRAME_SHIFT * (self.target_length - 1)

    def log_mel(self, waveforms: ArrayLike, lengths: ArrayLike | None = None) -> jax.Array:
        """Returns log-mel features ``(batch, target_length, 128)`` before normalisation, as float32, for masking.

        Frames that do not lie completely within their clip are 0.

        Args:
            waveforms: ``(batch, samples)`` at 16 kHz in [-1, 1]. The mean of each clip should be zero, although only
                rounding depends on it, because the mean of each frame is removed too.
            lengths: ``(batch,)`` valid samples of each clip; the rest of its row is ignored. None: the whole row.

        Raises:
            FrontendError: if the shapes do not match, or the samples are integers.
        """
        return _log_mel(_float32(waveforms), _valid_lengths(waveforms, lengths), self.target_length)

    def normalise(self, x: jax.Array) -> jax.Array:
        """Returns ``(x - mean) / std``; padding and masks, which are 0 in `x`, become ``-mean / std``."""
        return (x - self.mean) / self.std

    def __call__(self, waveforms: ArrayLike, lengths: ArrayLike | None = None, *, zero_mean: bool = True) -> jax.Array:
        """Returns normalised log-mel features ``(batch, target_length, 128)``, as float32.

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
    """Returns log-mels ``(batch, frames, 128)``, computed in blocks of about ``rows`` frames that fit the CPU cache."""
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
    """Returns log-mels ``(batch, n - 2, 128)`` of hops ``(batch, n, 160)``; a frame consists of two and a half hops.

    Clips and frames are the last axes throughout, so that no product needs a transposed copy of its input and a batch
    sharded over devices stays sharded.
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
    """Returns the power ``(272, batch, n)`` of frames ``(400, batch, n)``: window, 512-point DFT, squared magnitude.

    With sample index ``16a + b`` and bin ``k + 32j``, the first product sums over ``a`` and needs only 17 values of
    ``k``, because the input is real; the second one sums over ``b``. :func:`_bins` gives the order of the bins.
    """
    first, second = (matrix.astype(x.dtype) for matrix in _transforms())
    clips_and_frames = x.shape[1:]
    x = x.reshape(FRAME_LENGTH // _RADIX, _RADIX, *clips_and_frames)
    x = lax.dot_general(first, x, (((2,), (0,)), ((0,), (1,))), precision=lax.Precision.HIGHEST)
    x = x.reshape(_RADIX, 2, _HALF, *clips_and_frames)
    real, imaginary = jnp.tensordot(second, x, 2, precision=lax.Precision.HIGHEST)
    return (real * real + imaginary * imaginary).reshape(_RADIX * _HALF, *clips_and_frames)


def _bins() -> np.ndarray:
    """Returns the DFT bin in each row of :func:`_power`, ``(16, 17)``; bins above 256 are replaced by their mirror."""
    bins = np.arange(_HALF) + _STRIDE * np.arange(_RADIX)[:, None]
    return np.where(bins > _FFT_SIZE // 2, _FFT_SIZE - bins, bins)


@functools.lru_cache
def _transforms() -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices of the DFT: ``(16, 2 * 17, 25)`` with window and twiddle factors, and ``(2, 16, 16, 2)``."""
    sample = np.arange(FRAME_LENGTH).reshape(-1, _RADIX).T
    window = 0.5 - 0.5 * np.cos(2 * np.pi * sample / (FRAME_LENGTH - 1))
    turns = np.arange(_HALF)[:, None] * sample[:, None] % _FFT_SIZE / _FFT_SIZE
    first = np.concatenate([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1) * window[:, None]
    turns = np.outer(np.arange(_RADIX), np.arange(_RADIX)) % _RADIX / _RADIX
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return first, np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)])


@functools.lru_cache
def _mel_filters() -> np.ndarray:
    """Returns triangular filters ``(128, 256)`` on Kaldi's mel scale for bins 0 to 255; bin 256 (8 kHz) has weight 0.

    Each operation is rounded to float32 as in torchaudio: near the edge of a filter, the rounding of the mel scale
    changes a weight by 0.16 %, which exceeds the tolerance of the features.
    """
    f32 = np.float32
    low, high = (1127.0 * np.log(1.0 + hz / 700.0) for hz in (_LOW_HZ, SAMPLE_RATE / 2))
    delta = (high - low) / (NUM_MELS + 1)
    ratio = f32(1) + f32(SAMPLE_RATE / _FFT_SIZE) * np.arange(_FFT_SIZE // 2, dtype=f32) / f32(700)
    mel = f32(1127) * np.log(ratio.astype(np.float64)).astype(f32)
    index = np.arange(NUM_MELS, dtype=f32)[:, None]
    left, centre, right = (f32(low) + (index + f32(i)) * f32(delta) for i in range(3))
    return np.maximum(np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)), f32(0))


@functools.lru_cache
def _filters() -> np.ndarray:
    """Returns the mel filters in the bin order of :func:`_power`, ``(128, 272)``; repeated bins have weight 0."""
    bins = _bins().ravel()
    _, first = np.unique(bins, return_index=True)
    first = first[bins[first] < _FFT_SIZE // 2]
    weights = np.zeros((NUM_MELS, bins.size), np.float32)
    weights[:, first] = _mel_filters()[:, bins[first]]
    return weights
