"""Recordings with and without defects, and their measurement for the checks of ``psla check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from psla_jax.data import datafile
from psla_jax.data.validate.findings import Finding, MeasuredDataset
from psla_jax.data.validate.measure import measure_clips

MIDS = ("/t/animal", "/t/dog", "/t/car")


def noise(seed: int = 0, seconds: float = 0.5, rate: int = 16_000, level: float = 0.1) -> np.ndarray:
    """White noise over the whole band, rounded to 16 bits."""
    values = np.random.default_rng(seed).uniform(-level, level, int(seconds * rate))
    return np.rint(values * 32768) / 32768


def write(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    """Writes an audio file; the extension of its name selects the format."""
    if subtype == "PCM_16":  # libsndfile scales floats by 32767
        samples = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def measure(
    folder: Path, records: Sequence[tuple[str, Sequence[str]]], mids: Sequence[str] = MIDS, **fields: Any
) -> MeasuredDataset:
    """Writes a datafile of the recordings in a folder, and measures them."""
    datafile.write(folder / "set.json", records)
    data, all_mids = datafile.read_open_vocabulary(folder / "set.json", mids)
    measurements = measure_clips(data, range(len(data)), channel="mean", workers=2)
    return MeasuredDataset(data, measurements, all_mids, **fields)


def clean(folder: Path, count: int = 4) -> list[tuple[str, list[str]]]:
    """Writes recordings without defects and returns their records."""
    for i in range(count):
        write(folder / f"clean{i}.wav", noise(i))
    return [(f"clean{i}.wav", [MIDS[0], MIDS[1 + i % 2]] if i % 2 == 0 else [MIDS[2]]) for i in range(count)]


def only(check: Callable, dataset: MeasuredDataset) -> Finding:
    """Returns the single finding of a check."""
    (finding,) = check(dataset)
    return finding
