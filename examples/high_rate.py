"""Sounds above 8 kHz: training and tagging at 32 kHz, end to end.

    python examples/high_rate.py

The network of PSLA receives sound up to 8 kHz, half of its sample rate. Insects, bats at the lower end, many birds and
machine faults are above that. The frontend is a setting of the model: ``FrontendConfig(sample_rate=32_000)`` resamples
all audio to 32 kHz, and the mel filters then reach 16 kHz. Training, evaluation, ``psla tag``, live streams and model
directories follow, because the frontend is stored with the model; nothing has to be repeated when the model is used.

The features of another rate, window or band have other statistics than those of the reference, so ``mean="auto"`` and
``std="auto"`` measure them from the training set before the first step.

The recordings here are synthetic calls between 9 and 14 kHz in noise, at 48 kHz as a recorder writes them. At 16 kHz,
a network can hardly distinguish them; at 32 kHz, the same one does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import tyro

import psla_jax
from psla_jax.data import datafile

RATE = 48_000
"""Sample rate of the recordings in Hz."""
CALLS = {"cricket": (9_500, 9_500), "katydid": (13_500, 13_500), "rising": (9_000, 14_000), "falling": (14_000, 9_000)}
"""Frequency in Hz at the beginning and at the end of each kind of call."""


def call(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Returns half a second of pulses in noise, float64 ``(samples,)``."""
    time = np.arange(RATE // 2) / RATE
    hertz = np.linspace(*CALLS[kind], len(time)) * rng.uniform(0.97, 1.03)
    pulses = np.maximum(np.sin(2 * np.pi * rng.uniform(6, 16) * time + rng.uniform(0, 6)), 0) ** 2  # without clicks
    return 0.1 * pulses * np.sin(2 * np.pi * np.cumsum(hertz) / RATE) + rng.normal(0, 0.02, len(time))


def write_recordings(folder: Path, part: str, clips: int, seed: int) -> str:
    """Writes recordings, as many of each kind, and their datafile; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, records = np.random.default_rng(seed), []
    for number, kind in zip(range(clips), clips * list(CALLS)):
        name = f"{part}-{number:03}.wav"
        soundfile.write(folder / name, call(kind, rng), RATE)
        records.append((name, [kind]))
    datafile.write(folder / f"{part}.json", records)
    return str(folder / f"{part}.json")


def main(run_dir: str = "runs/high_rate", rates: tuple[int, ...] = (16_000, 32_000), epochs: int = 6) -> list[float]:
    """Trains at each rate, and returns the evaluation mAP of the weight averages."""
    folder = Path(run_dir) / "recordings"
    train = write_recordings(folder, "train", clips=120, seed=0)
    evaluation = write_recordings(folder, "evaluation", clips=60, seed=1)
    psla_jax.Vocabulary(tuple(CALLS), tuple(map(str.capitalize, CALLS))).write(folder / "labels.csv")

    results = []
    for rate in rates:
        config = psla_jax.RunConfig(
            run_dir=f"{run_dir}/{rate}",
            data=psla_jax.DataConfig(
                train=train, evaluation=evaluation, labels=str(folder / "labels.csv"), batch_size=24, workers=0
            ),
            frontend=psla_jax.FrontendConfig(sample_rate=rate, target_length=48, mean="auto", std="auto"),
            model=psla_jax.ModelConfig("efficientnet-tiny", heads=1, drop_connect=0.0),
            sampling=psla_jax.SamplingConfig(mixup=0.0, freq_mask=0, time_mask=0),
            optimizer=psla_jax.OptimizerConfig(epochs=epochs, learning_rate=4e-3, warmup_steps=0),
            aggregation=psla_jax.AggregationConfig(first=max(1, epochs - 2)),
            bootstrap=0,
        )
        _, average, *_ = psla_jax.train(config)
        results.append(average.sets["evaluation"].mAP)

    for rate, result in zip(rates, results):
        print(f"{rate} Hz: evaluation mAP {result:.3f}")
    tags = psla_jax.load(f"{run_dir}/{rates[-1]}").tag(folder / "evaluation-000.wav")
    print(f"a cricket is tagged as {tags.top(1)[0].name} with score {tags.top(1)[0].score:.2f}")
    return results


if __name__ == "__main__":
    tyro.cli(main)
