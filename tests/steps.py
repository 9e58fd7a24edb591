"""Steps on waveforms of the user's own, in a module that loader processes can import."""

from __future__ import annotations

import dataclasses

import numpy as np

from psla_jax.sampling.waveform import Clips, Example


def fade(example: Example, rng: np.random.Generator, num_samples: int, clips: Clips, *, power: float = 1.0) -> Example:
    """A step of one's own: a fade to the end of the input, of a random depth."""
    assert len(clips) == 10
    envelope = 1 - rng.random() * np.minimum(np.arange(len(example.waveform)) / num_samples, 1) ** power
    return dataclasses.replace(example, waveform=example.waveform * envelope.astype(np.float32))


def fails_later(example: Example, rng: np.random.Generator) -> Example:
    """Raises an exception for about one in thirty samples."""
    if rng.random() < 1 / 30:
        raise ZeroDivisionError("division by zero")
    return example
