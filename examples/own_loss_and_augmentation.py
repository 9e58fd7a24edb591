"""A loss and augmentation of one's own, in the config of a training.

    python examples/own_loss_and_augmentation.py

A config is Python: wherever it takes a name, such as ``loss="focal(gamma=2)"``, it also takes a function. The function
states by the names of its parameters what it needs, as a pytest fixture does, and ``functools.partial`` sets options:

- A loss is called as ``loss(scores, labels)`` and returns one value per clip. It may also take ``class_weights``,
  ``valid``, and other fields of the batch.
- A step for waveforms, ``step(example, rng)``, runs in the loader, without JAX. It may also take ``sample_rate``,
  ``num_samples``, or ``clips``, the other clips of the training set.
- A step for spectrograms, ``step(batch, keys)``, runs on the device, with one key per clip. It may also take ``fill``,
  the value of padding, and ``std``, by which the features were divided.

Keys and generators are functions of (seed, epoch, sample), so that a run with such functions is as reproducible as any
other, for any number of loader processes. A function that cannot be called, or returns another shape, is an error of
one sentence before the first step. ``config.json`` records the functions by their import paths, and a resumed run
compares them; on the command line, the same is ``--optimizer.loss "my_module:tolerant(margin=0.8)"``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import psla_jax
from psla_jax.sampling.spectrogram import Batch
from psla_jax.sampling.waveform import Example


def tolerant(scores: jax.Array, labels: jax.Array, *, margin: float = 0.9) -> jax.Array:
    """Binary cross-entropy without the negatives that score above `margin`: their labels may be missing."""
    scores = jnp.clip(scores, 1e-7, 1 - 1e-7)
    terms = labels * jnp.log(scores) + (1 - labels) * jnp.log1p(-scores)
    may_be_missing = (labels == 0) & (scores > margin)
    return -jnp.where(may_be_missing, 0.0, terms).mean(axis=1)


def change_speed(example: Example, rng: np.random.Generator, *, most: float = 1.1) -> Example:
    """Plays a clip faster or slower by up to the factor `most`, which also shifts its pitch."""
    positions = np.arange(0, len(example.waveform), most ** rng.uniform(-1, 1))
    resampled = np.interp(positions, np.arange(len(example.waveform)), example.waveform)
    return replace(example, waveform=resampled.astype(np.float32))


def tilt(batch: Batch, keys: jax.Array, std: float, *, decibels: float = 6.0) -> Batch:
    """Tilts the spectrum of each clip by a random number of decibels, as another microphone would."""
    x = batch["spectrogram"]
    most = decibels * math.log(10) / 10 / std
    slopes = jax.vmap(lambda key: jax.random.uniform(key, minval=-most, maxval=most))(keys)
    gains = slopes[:, None] * jnp.linspace(-0.5, 0.5, x.shape[-1])
    return {**batch, "spectrogram": x + gains[:, None]}


def main(run_dir: str = "runs/own_loss_and_augmentation", epochs: int = 5) -> float:
    """Trains on the embedded demo set, and returns the evaluation mAP of the best epoch."""
    settings = {
        "run_dir": run_dir,
        "data.batch_size": 24,
        "sampling.waveform": (partial(change_speed, most=1.05), "mixup"),
        "sampling.spectrogram": ("specaugment", tilt),
        "optimizer.loss": partial(tolerant, margin=0.95),
        "optimizer.epochs": epochs,
        "optimizer.learning_rate": 4e-3,
        "aggregation.first": max(1, epochs - 1),
    }
    best, *_ = psla_jax.train(psla_jax.read_config("demo", settings))
    mean_average_precision = best.sets["evaluation"].mAP
    print(f"evaluation mAP {mean_average_precision:.3f}")
    return mean_average_precision


if __name__ == "__main__":
    tyro.cli(main)
