"""Compares the policies for clips that are shorter than the model's window: mAP against duration.

    python scripts/durations.py DIR MODEL... [--seconds 0.25 0.5 1 2]

DIR is the output directory of ``psla prepare fsd50k``. Evaluation recordings are cut to their first seconds and tagged
with each policy; shorter recordings stay as they are, and the last row is for uncut recordings. The intervals after the
mAP of repeat and mask are for its difference from the mAP of pad: the middle 95% over bootstrap resamples of the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from tyro.conf import Positional

from psla_jax.audio import segments
from psla_jax.audio.decode import SAMPLE_RATE
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation import metrics
from psla_jax.tagging.network import Policy
from psla_jax.tagging.tagger import Tagger, load_tagger

POLICIES = get_args(Policy)


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    data: Positional[str]
    """Output directory of psla prepare fsd50k."""
    models: Positional[tuple[str, ...]]
    """Model directories or run directories."""
    seconds: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Durations to cut the recordings to, in seconds."""
    resamples: int = 200
    """Number of resamples for each interval."""


def cut(waveform: np.ndarray, seconds: float) -> np.ndarray:
    """Returns at most the first `seconds` of a waveform at 16 kHz."""
    return waveform[: round(seconds * SAMPLE_RATE)]


def tag_all(tagger: Tagger, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the scores of all waveforms, ``(clips, classes)``."""
    return np.stack([tagger.tag(waveform, SAMPLE_RATE).scores for waveform in waveforms])


def bootstrap_maps(scores: np.ndarray, labels: np.ndarray, resamples: int) -> np.ndarray:
    """Returns the mAP of resamples of the clips, ``(resamples,)``; resample ``r`` has the same clips in every call."""
    drawn = [np.random.default_rng([0, r]).integers(0, len(labels), len(labels)) for r in range(resamples)]
    return np.array([metrics.evaluate(scores[clips], labels[clips]).mAP for clips in drawn])


def row(scores: dict[str, np.ndarray], labels: np.ndarray, resamples: int) -> list[str]:
    """Returns the cells of one duration: the mAP with each policy."""
    base, cells = bootstrap_maps(scores["pad"], labels, resamples), []
    for policy, values in scores.items():
        cell = f"{metrics.evaluate(values, labels).mAP:.3f}"
        if policy != "pad":
            low, high = np.quantile(bootstrap_maps(values, labels, resamples) - base, [0.025, 0.975])
            cell += f" ({low:+.3f} to {high:+.3f})"
        cells.append(cell)
    return cells


def main(options: Options) -> None:
    """Prints one table per model."""
    tables = Path(options.data) / "datafiles"
    for model in options.models:
        taggers = {policy: load_tagger(model, policy=policy) for policy in POLICIES}
        datafile = Datafile.read(tables / "fsd50k_eval_full.json", taggers["pad"].vocabulary)
        waveforms = [segments.read(datafile.audio(i)) for i in range(len(datafile))]
        labels = np.stack([datafile.multi_hot(i) for i in range(len(datafile))])
        print(f"\n{model}: windows of {taggers['pad'].window_seconds:.2f} s, {len(labels)} clips\n")
        print("| cut to | shorter than the window | " + " | ".join(POLICIES) + " |\n|---|---|" + "---|" * len(POLICIES))
        for seconds in (*options.seconds, np.inf):
            pieces = [cut(waveform, min(seconds, 1e6)) for waveform in waveforms]
            shorter = sum(len(piece) < taggers["pad"].frontend.num_samples for piece in pieces)
            cells = row({name: tag_all(tagger, pieces) for name, tagger in taggers.items()}, labels, options.resamples)
            name = f"{seconds:g} s" if np.isfinite(seconds) else "whole"
            print(f"| {name} | {shorter} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
