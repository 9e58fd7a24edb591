"""Small data sets of tones and noise for tests that need recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from psla_jax.audio.decode import write_pcm16
from psla_jax.config import (
    AggregationConfig,
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)
from psla_jax.data import datafile
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("/t/low", "/t/high", "/t/noise", "/t/never"), ("Low tone", "High tone", "Noise", "Never"))
SIZES = {"train": 26, "validation": 9, "evaluation": 11}


def clip(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Returns 0.3 to 0.6 s of a low tone (0), a high tone (1) or noise (2) at 16 kHz."""
    time = np.arange(rng.integers(4800, 9600)) / 16_000
    if kind == 2:
        return rng.normal(0, 0.1, len(time)).astype(np.float32)
    pitch = rng.uniform(150, 300) * (1 if kind == 0 else 10)
    return (0.3 * np.sin(2 * np.pi * pitch * time) + rng.normal(0, 0.01, len(time))).astype(np.float32)


def make(directory: Path, **sizes: int) -> Path:
    """Writes ``labels.csv`` and a datafile with its recordings per split; the fourth class has no clips."""
    directory.mkdir(parents=True, exist_ok=True)
    VOCABULARY.write(directory / "labels.csv")
    for number, (split, size) in enumerate((SIZES | sizes).items()):
        rng, records = np.random.default_rng(number), []
        for i in range(size):
            path = directory / f"{split}{i:02d}.wav"
            write_pcm16(path, clip(i % 3, rng))
            records.append((str(path), [VOCABULARY.mids[i % 3]]))
        datafile.write(directory / f"{split}.json", records)
    return directory


def config(directory: Path, run_dir: Path, **fields: object) -> RunConfig:
    """Returns a config that trains the tiny model for three epochs on the data of :func:`make`."""
    values: dict = {
        "run_dir": str(run_dir),
        "data": DataConfig(
            **{split: str(directory / f"{split}.json") for split in SIZES},
            labels=str(directory / "labels.csv"),
            batch_size=8,
            workers=0,
        ),
        "frontend": FrontendConfig(target_length=40),
        "model": ModelConfig(name="tiny:build"),
        "sampling": SamplingConfig(freq_mask=24, time_mask=10),
        "optimizer": OptimizerConfig(learning_rate=1e-2, epochs=3, warmup_steps=0, decay_start=2),
        "aggregation": AggregationConfig(first=2, last=3),
        "bootstrap": 20,
    }
    return RunConfig(**{**values, **fields})
