"""The sections ``frontend`` and ``model`` of a config, which a model directory stores with the weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from psla_jax.config_fields import ConfigError, name_ingredients, require, require_one_of
from psla_jax.ingredients import Ingredient, is_imported

Statistic = float | Literal["auto"]
"""A number, or `auto` where it is measured from the training set before the first step."""
Padding = Literal["symmetric", "static"]
BatchStatistics = Literal["synchronised", "local"]
MIN_WINDOW, MAX_FFT_SIZE = 16, 65_536
"""Samples of a frame of the frontend: the least, and the most."""


def require_sample_rate(rate: int, name: str) -> None:
    """Raises ConfigError, with the `name` of the setting, unless audio can be resampled to `rate`."""
    if not 1000 <= rate <= 1_000_000:
        raise ConfigError(f"{name} is {rate!r}: use 1000 to 1000000 samples per second, such as 16000 or 32000.")


def _is_between(low: float, value: object, high: float) -> bool:
    """Returns whether a value is a number between two others, without them."""
    return not isinstance(value, str) and low < value < high  # type: ignore[operator]


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel features as Kaldi computes them (PSLA, section III-A); stored with the model."""

    target_length: int = 1056
    """Frames per clip, one per frontend.hop; longer clips are cut, shorter ones zero-padded."""
    mean: Statistic = -4.6476
    """Mean of the log-mel features, subtracted from them; `auto` measures it from the training set."""
    std: Statistic = 4.5699
    """Standard deviation of the log-mel features, by which they are then divided; `auto` measures it."""
    sample_rate: int = 16_000
    """Samples per second; all audio is resampled to this rate."""
    num_mels: int = 128
    """Number of mel bins, the height of the spectrogram."""
    hop: float = 10.0
    """Milliseconds from one frame to the next; a fraction of a sample is dropped, as in Kaldi."""
    window: float = 25.0
    """Milliseconds of a frame; the FFT has the next power of two of its samples."""
    low_hz: float = 20.0
    """Lower edge of the lowest mel filter, in Hz."""
    high_hz: float = 0.0
    """Upper edge of the highest mel filter, in Hz; 0 for half the sample rate."""

    def __post_init__(self) -> None:
        require(self, "target_length", self.target_length >= 1, "use at least 1 frame")
        std, mean = self.std, self.mean
        require(
            self, "std", std == "auto" or _is_between(0, std, math.inf), "use a positive standard deviation, or auto"
        )
        require(self, "mean", mean == "auto" or _is_between(-math.inf, mean, math.inf), "use a finite number, or auto")
        require_sample_rate(self.sample_rate, "frontend.sample_rate")
        require(self, "num_mels", self.num_mels >= 1, "use at least one mel bin, such as 128")
        longest = 1000 * MAX_FFT_SIZE / self.sample_rate
        remedy = f"use milliseconds, of 1 sample or more and at most {longest:g} ms at {self.sample_rate} Hz"
        require(self, "hop", 0 < self.hop <= longest and self.hop_samples >= 1, remedy)
        remedy = f"use milliseconds, {MIN_WINDOW} samples or more and at most {longest:g} ms at {self.sample_rate} Hz"
        require(self, "window", 0 < self.window <= longest and self.window_samples >= MIN_WINDOW, remedy)
        nyquist = self.sample_rate / 2
        remedy = f"use at most {nyquist:g} Hz, half of frontend.sample_rate, or 0 for that"
        require(self, "high_hz", 0 <= self.high_hz <= nyquist, remedy)
        remedy = f"use 0 or more, and less than the upper edge of {self.top_hz:g} Hz (frontend.high_hz)"
        require(self, "low_hz", 0 <= self.low_hz < self.top_hz, remedy)
        remedy = (
            f"{self.num_empty_mels} of the mel filters would be empty, between the {self.fft_size // 2} frequencies of "
            "the FFT, so use fewer, or a longer frontend.window"
        )
        require(self, "num_mels", 4 * self.num_empty_mels <= self.num_mels, remedy)

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return int(round(self.sample_rate * self.hop / 1000, 6))

    @property
    def window_samples(self) -> int:
        """Samples of a frame."""
        return int(round(self.sample_rate * self.window / 1000, 6))

    @property
    def num_samples(self) -> int:
        """Number of samples in ``target_length`` frames; samples beyond them are ignored."""
        return self.window_samples + self.hop_samples * (self.target_length - 1)

    @property
    def fft_size(self) -> int:
        """Points of the FFT, the next power of two of a frame."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def top_hz(self) -> float:
        """Upper edge of the highest mel filter, in Hz."""
        return self.high_hz or self.sample_rate / 2

    @property
    def num_empty_mels(self) -> int:
        """Number of mel filters without a frequency of the FFT, whose values are constant; 1 by default."""
        low, high = (math.log1p(hz / 700) for hz in (self.low_hz, self.top_hz))
        width = self.sample_rate / self.fft_size
        step = (high - low) / (self.num_mels + 1)
        edges = [700 * math.expm1(low + step * i) / width for i in range(self.num_mels + 2)]
        return sum(
            not math.floor(left) + 1 < min(right, self.fft_size // 2) for left, right in zip(edges[:-2], edges[2:])
        )


@dataclass(frozen=True)
class ModelConfig:
    """Network: a backbone with a pooling head, or a custom NNX module."""

    name: Ingredient = "efficientnet-b2"
    """`efficientnet-b0` to `-b7`, `resnet50`, `mobilenet-v2`, or `package.module:callable` for a backbone or a whole
    model of one's own."""
    pooling: Ingredient = "attention"
    """Pooling over output frames: `attention`, `mean` of the frame scores, `linear` on mean features, or
    `package.module:callable` for a head of one's own."""
    heads: int = 4
    """Number of attention heads; ignored unless pooling is `attention`."""
    padding: Padding = "symmetric"
    """Padding of the convolutions: `symmetric` as in efficientnet_pytorch 0.7.0, or `static` as in 0.7.1."""
    drop_connect: float = 0.2
    """Drop-connect rate of the last block; the rate grows linearly with the depth of a block."""
    batch_norm: BatchStatistics = "synchronised"
    """Batch statistics in training: `synchronised` over all devices, or `local` to the clips of every device, as
    PyTorch's DataParallel in the reference; the running statistics are then means over the devices."""

    def __post_init__(self) -> None:
        name_ingredients(self, "name", "pooling")
        require_one_of(self, "padding", Padding)
        require_one_of(self, "batch_norm", BatchStatistics)
        require(self, "heads", self.heads >= 1, "use at least one head, or model.pooling mean for none")
        require(self, "drop_connect", 0 <= self.drop_connect < 1, "use a rate in [0, 1)")

    @property
    def custom_code(self) -> tuple[str, ...]:
        """Import paths of the code outside this package that builds parts of the network; empty for built-in parts."""
        return tuple(text for text in (self.name, self.pooling) if is_imported(text))


def network_settings(model: ModelConfig) -> dict[str, Any]:
    """Returns the settings that identify a network: all but the batch statistics in training."""
    settings = dataclasses.asdict(model)
    del settings["batch_norm"]
    return settings


def frontend_settings(frontend: FrontendConfig) -> dict[str, Any]:
    """Returns the settings that identify the features of a model, those of later versions only if they are not default.

    Fingerprints and cached results of earlier versions thus remain valid.
    """
    first = ("target_length", "mean", "std")
    fields = dataclasses.fields(FrontendConfig)
    values = {f.name: getattr(frontend, f.name) for f in fields}
    return {f.name: values[f.name] for f in fields if f.name in first or values[f.name] != f.default}
