"""What a clip that is shorter than the model's window is best filled up with: mAP against duration, by policy.

python scripts/durations.py DIR MODEL... [--seconds 0.25 0.5 1 2]

DIR is where ``psla prepare fsd50k`` put its datafiles. Evaluation recordings are cut to their first so many seconds and
tagged under each policy; shorter ones stay as they are, and the last row has all of them whole. Behind the mAP of
repeat and mask stands how much more it is than that of pad: the middle 95% over resamples of the clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from tyro.conf import Positional

from psla_jax import audio, metrics
from psla_jax.audio import SAMPLE_RATE
from psla_jax.data.datafile import Datafile
from psla_jax.tagging.programs import Policy
from psla_jax.tagging.tagger import Tagger, load

POLICIES = get_args(Policy)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    data: Positional[str]
    """Where psla prepare fsd50k put its datafiles."""
    models: Positional[tuple[str, ...]]
    """Model or run directories."""
    seconds: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Recordings are cut to so much."""
    resamples: int = 200
    """Behind each interval."""


def cut(waveform: np.ndarray, seconds: float) -> np.ndarray:
    """The first so many seconds, or all there is."""
    return waveform[: round(seconds * SAMPLE_RATE)]


def scored(tagger: Tagger, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """The scores of every clip, ``(clips, classes)``."""
    return np.stack([tagger.tag(waveform, SAMPLE_RATE).scores for waveform in waveforms])


def resampled(scores: np.ndarray, labels: np.ndarray, resamples: int) -> np.ndarray:
    """The mAP over clips drawn anew with replacement, ``(resamples,)``; resample ``r`` draws the same of any scores."""
    drawn = [np.random.default_rng([0, r]).integers(0, len(labels), len(labels)) for r in range(resamples)]
    return np.array([metrics.evaluate(scores[clips], labels[clips]).mAP for clips in drawn])


def row(scores: dict[str, np.ndarray], labels: np.ndarray, resamples: int) -> list[str]:
    """The cells of one duration: the mAP under each policy."""
    base, cells = resampled(scores["pad"], labels, resamples), []
    for policy, of_policy in scores.items():
        cell = f"{metrics.evaluate(of_policy, labels).mAP:.3f}"
        if policy != "pad":
            low, high = np.quantile(resampled(of_policy, labels, resamples) - base, [0.025, 0.975])
            cell += f" ({low:+.3f} to {high:+.3f})"
        cells.append(cell)
    return cells


def main(options: Options) -> None:
    """Prints a table per model."""
    tables = Path(options.data) / "datafiles"
    for model in options.models:
        taggers = {policy: load(model, policy=policy) for policy in POLICIES}
        datafile = Datafile.read(tables / "fsd50k_eval_full.json", taggers["pad"].vocabulary)
        waveforms = [audio.read(datafile.wav(i)) for i in range(len(datafile))]
        labels = np.stack([datafile.multi_hot(i) for i in range(len(datafile))])
        print(f"\n{model}: windows of {taggers['pad'].window_seconds:.2f} s, {len(labels)} clips\n")
        print("| cut to | shorter than the window | " + " | ".join(POLICIES) + " |\n|---|---|" + "---|" * len(POLICIES))
        for seconds in (*options.seconds, np.inf):
            pieces = [cut(waveform, min(seconds, 1e6)) for waveform in waveforms]
            shorter = sum(len(piece) < taggers["pad"].frontend.num_samples for piece in pieces)
            cells = row({name: scored(tagger, pieces) for name, tagger in taggers.items()}, labels, options.resamples)
            name = f"{seconds:g} s" if np.isfinite(seconds) else "whole"
            print(f"| {name} | {shorter} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
