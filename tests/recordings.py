"""Recordings with and without defects, and what a check finds in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from psla_jax.data import datafile
from psla_jax.data.findings import Examined, Finding
from psla_jax.data.measure import measure_all

MIDS = ("/t/animal", "/t/dog", "/t/car")


def noise(seed: int = 0, seconds: float = 0.5, rate: int = 16_000, level: float = 0.1) -> np.ndarray:
    """White noise over the whole band, as 16 bits hold it."""
    values = np.random.default_rng(seed).uniform(-level, level, int(seconds * rate))
    return np.rint(values * 32768) / 32768


def write(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    """A file of the format its name says."""
    if subtype == "PCM_16":  # libsndfile scales floats by 32767
        samples = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def examine(
    folder: Path, records: Sequence[tuple[str, Sequence[str]]], mids: Sequence[str] = MIDS, **fields: Any
) -> Examined:
    """Makes a datafile of recordings that are in a folder, and measures them."""
    datafile.write(folder / "set.json", records)
    data, found = datafile.read_any(folder / "set.json", mids)
    return Examined(data, measure_all(data, range(len(data)), channel="mean", workers=2), found, **fields)


def clean(folder: Path, count: int = 4) -> list[tuple[str, list[str]]]:
    """Sound recordings of a sound data set."""
    for i in range(count):
        write(folder / f"clean{i}.wav", noise(i))
    return [(f"clean{i}.wav", [MIDS[0], MIDS[1 + i % 2]] if i % 2 == 0 else [MIDS[2]]) for i in range(count)]


def only(check: Callable, examined: Examined) -> Finding:
    """The single finding of a check."""
    (finding,) = check(examined)
    return finding
