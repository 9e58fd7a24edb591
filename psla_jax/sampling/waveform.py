"""Augmentation of waveforms by the loader: the steps of ``sampling.waveform``.

A step is a pure function ``step(example, rng, ...) -> Example``. The random generator depends on (seed, epoch, sample)
and on the position of the step in the list. By their names, a step may take further parameters:

=============== ========================================================================================================
``clips``       The training set (:class:`Clips`): its length, and its clips as examples by index.
``open_clips``  ``open_clips(path) -> Clips`` of another datafile, whose labels are ignored.
``num_samples`` Input length of the model, in samples. Examples are cut or zero-padded to it after the last step.
``sample_rate`` Sample rate in Hz.
``mixup``       The setting ``sampling.mixup``.
=============== ========================================================================================================

All other parameters are options, as in ``gain(decibels=12)``. Steps run in loader processes, which do not import JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from psla_jax.sampling.mixup import ALPHA, draw_mix, mix_waveforms


@dataclass(frozen=True)
class Example:
    """A clip in training.

    Attributes:
        waveform: float32 ``(samples,)`` with full scale 1; before the first step, its mean is 0.
        targets: float32 ``(classes,)`` by name, ``labels`` among them, in [0, 1]. A step that mixes clips mixes all.
        failed: index of a clip that could not be read, because of which a step left the example unchanged; else -1.
    """

    waveform: np.ndarray
    targets: Mapping[str, np.ndarray]
    failed: int = -1


class Clips(Protocol):
    """Random access to clips."""

    def __len__(self) -> int: ...

    def __getitem__(self, clip: int) -> Example | None:
        """Returns a clip; None if it cannot be read."""
        ...


def mixup(
    example: Example,
    rng: np.random.Generator,
    clips: Clips,
    mixup: float,
    *,
    alpha: float = ALPHA,
    most: int = 2,
    union: bool = False,
) -> Example:
    """Mixes the example with clips of the training set (PSLA, section III-C), see :func:`draw_mix`.

    Args:
        example: the first clip, whose length is kept.
        rng: source of the draws.
        clips: the training set.
        mixup: probability that the example is mixed.
        alpha: parameter of the distribution of the weights.
        most: largest number of clips in a mix.
        union: targets are those of all clips together, their maximum, instead of their weighted mean.
    """
    mix = draw_mix(rng, mixup, len(clips), alpha=alpha, most=most)
    if mix is None:
        return example
    members = [example]
    for partner in mix.partners:
        clip = clips[partner]
        if clip is None:
            return dataclasses.replace(example, failed=partner)
        members.append(clip)
    waveform = mix_waveforms([member.waveform for member in members], mix.weights)
    of_members = {name: [member.targets[name] for member in members] for name in example.targets}
    targets = {
        name: np.maximum.reduce(values) if union else _mix_targets(values, mix.weights)
        for name, values in of_members.items()
    }
    return dataclasses.replace(example, waveform=waveform, targets=targets)


def _mix_targets(targets: list[np.ndarray], weights: tuple[float, ...]) -> np.ndarray:
    mixed: np.ndarray = np.float32(weights[0]) * targets[0]
    for target, weight in zip(targets[1:], weights[1:], strict=True):
        mixed = mixed + np.float32(weight) * target
    return mixed


def gain(example: Example, rng: np.random.Generator, *, decibels: float = 6.0) -> Example:
    """Changes the level by a random number of decibels, uniform in ``[-decibels, decibels]``."""
    factor = np.float32(10.0 ** (rng.uniform(-decibels, decibels) / 20.0))
    return dataclasses.replace(example, waveform=factor * example.waveform)


def roll(example: Example, rng: np.random.Generator, sample_rate: int, *, seconds: float = 0.1) -> Example:
    """Shifts the waveform in time by up to `seconds` in either direction; what leaves one end enters at the other."""
    most = round(seconds * sample_rate)
    return dataclasses.replace(example, waveform=np.roll(example.waveform, rng.integers(-most, most + 1)))


def crop(example: Example, rng: np.random.Generator, num_samples: int) -> Example:
    """Takes a random part of a clip that is longer than the input of the model, instead of its beginning."""
    excess = len(example.waveform) - num_samples
    if excess <= 0:
        return example
    start = int(rng.integers(excess + 1))
    return dataclasses.replace(example, waveform=example.waveform[start : start + num_samples])


def background(
    example: Example,
    rng: np.random.Generator,
    open_clips: Callable[[str], Clips],
    *,
    datafile: str,
    snr: tuple[float, float] = (5.0, 20.0),
    rate: float = 0.5,
) -> Example:
    """Adds, with probability `rate`, a random clip of another datafile as background noise; labels do not change.

    Args:
        example: the clip; noise is repeated or cut to its length, from a random position on.
        rng: source of the draws.
        open_clips: opens `datafile`.
        datafile: path of the datafile with the noise.
        snr: range of the ratio of the clip's power to that of the noise, in decibels.
        rate: probability that noise is added.
    """
    noises = open_clips(datafile)
    draw, number, decibels = rng.random(), int(rng.integers(len(noises))), rng.uniform(*snr)
    noise = noises[number] if draw < rate else None
    power = float(np.mean(np.square(example.waveform))) if len(example.waveform) else 0.0
    if noise is None or not len(noise.waveform) or not power:
        return example
    start = int(rng.integers(len(noise.waveform)))
    repeated = np.resize(np.roll(noise.waveform, -start), len(example.waveform))
    noise_power = float(np.mean(np.square(repeated)))
    if not noise_power:
        return example
    scale = np.float32(np.sqrt(power / noise_power * 10.0 ** (-decibels / 10.0)))
    return dataclasses.replace(example, waveform=example.waveform + scale * repeated)


WAVEFORM_STEPS: dict[str, Callable[..., Example]] = {
    "mixup": mixup,
    "gain": gain,
    "roll": roll,
    "crop": crop,
    "background": background,
}
"""The steps by their names in a config."""
