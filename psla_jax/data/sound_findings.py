"""What can be wrong with the audio of single clips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from psla_jax.audio import SAMPLE_RATE
from psla_jax.data.findings import Examined, Finding, many
from psla_jax.data.measure import LONGEST

INTEGERS, LOUD = 16.0, 1.5
"""Peaks, of full scale: floats from the first on are integers never scaled; from the second on no format has reason."""
SCALED_TWICE = 2.0**-15
"""A float file with a lower peak was divided by 32768 once too often."""
SILENT = 1e-3
"""A lower peak, -60 dB, is nothing to hear."""
CLIPPED = 1e-3
"""Share of samples at full scale from which on a clip counts as clipped."""
HEARD_BAND = 7000.0
"""Hertz; the model hears up to 8000. Resamplers begin to cut a little below half the rate."""
LONG, SHORT = 600.0, 0.025
"""Seconds; the second is one frame."""
OFF_MEAN, OFF_STD = 0.5, 1.25
"""How far the log-mel may be from what is subtracted, in standard deviations, and from what it is divided by."""


def unreadable(examined: Examined) -> Iterator[Finding]:
    """Files that are missing, are not audio or hold samples that are no numbers."""
    problems = examined.measurements.problems
    if problems:
        yield Finding(
            "unreadable",
            "error",
            f"Clips that cannot be read: {many(len(problems), 'clip', len(examined.data))}",
            "Training stops before its first step.",
            "Repair the files or take them out of the datafile; --data.unreadable skip trains without them.",
            len(problems),
            [f"{problem.path} {problem.reason}" for problem in problems],
        )
    yield from examined.of_rows(
        np.flatnonzero(~examined.table["finite"]),
        "not-finite",
        "error",
        "Samples that are not numbers (NaN or infinite)",
        "One of them would make the loss and all weights NaN, so training refuses these files.",
        "Export them again as 16-bit PCM, or take them out of the datafile.",
    )


def scale(examined: Examined) -> Iterator[Finding]:
    """Floats that were never divided by 32768, or twice."""
    table = examined.table
    peak, finite = table["peak"], table["finite"]
    integers = finite & table["is_float"] & (peak >= INTEGERS)

    def detail(row: int) -> str:
        return f"peak {peak[row]:.3g}"

    yield from examined.of_rows(
        np.flatnonzero(integers),
        "scale-integers",
        "error",
        "Integers stored as floats",
        "Full scale of a float file is 1. To the model these are thousands of times louder than others.",
        "Divide them by 32768 (if they were 16-bit) and write them again, best as 16-bit PCM.",
        detail,
    )
    yield from examined.of_rows(
        np.flatnonzero(_scaled_twice(table)),
        "scale-twice",
        "error",
        "Floats scaled down twice",
        "Their peak is below one step of 16 bits: they were divided by 32768 although they were floats already.",
        "Multiply them by 32768 and write them again, best as 16-bit PCM.",
        detail,
    )
    yield from examined.of_rows(
        np.flatnonzero(finite & (peak >= LOUD) & ~integers),
        "loud",
        "warning",
        "Peaks far beyond full scale",
        "They were scaled by something else than full scale, such as their own loudness.",
        "Write all clips with one and the same scale.",
        detail,
    )


def _scaled_twice(table: np.ndarray) -> np.ndarray:
    return table["is_float"] & (table["peak"] > 0) & (table["peak"] < SCALED_TWICE)


def silence(examined: Examined) -> Iterator[Finding]:
    """Clips with nothing to hear."""
    table = examined.table

    def detail(row: int) -> str:
        if table["peak"][row] == 0:
            return "all samples are 0"
        if table["peak"][row] >= SILENT:
            return "its channels cancel each other"
        return f"peak {20 * np.log10(table['peak'][row]):.0f} dB"

    yield from examined.of_rows(
        np.flatnonzero(table["finite"] & (table["heard"] < SILENT) & ~_scaled_twice(table)),
        "silent",
        "warning",
        "Silent, nothing above -60 dB",
        "The model learns their labels from silence. Often a download or a conversion has failed.",
        "Record or download them again, or take them out. Where channels cancel: --data.channel first.",
        detail,
    )


def band(examined: Examined) -> Iterator[Finding]:
    """Clips that lack the upper part of what the model hears."""
    table = examined.table
    cut = np.flatnonzero(table["finite"] & (table["band"] < HEARD_BAND))
    upsampled = int((table["rate"][cut] >= SAMPLE_RATE).sum())
    made = f" Made from a lower rate, it seems: {many(upsampled, 'file')}." if upsampled else ""
    ends = counted(np.round(table["band"][cut] / 1000, 1), "kHz")
    yield from examined.of_rows(
        cut,
        "band",
        "warning",
        f"Nothing above {HEARD_BAND / 1000:.0f} kHz",
        f"The band ends at {ends}.{made} The model hears up to 8 kHz: where only some classes or sets are cut, it "
        "learns the cut.",
        "Get recordings of full rate, or cut all sets alike.",
        lambda row: f"{table['rate'][row]:,} Hz, ends at {table['band'][row] / 1000:.1f} kHz",
    )


def log_mel(examined: Examined) -> Iterator[Finding]:
    """Data that the config's normalisation does not fit."""
    found, config = examined.log_mel, examined.frontend
    if found is None:
        return
    offset, ratio = abs(found.mean - config.mean) / config.std, found.std / config.std
    if offset > OFF_MEAN or not 1 / OFF_STD < ratio < OFF_STD:
        yield Finding(
            "log-mel",
            "warning",
            f"The normalisation does not fit: log-mel {found.mean:.2f} ± {found.std:.2f}, "
            f"config {config.mean:.2f} ± {config.std:.2f}",
            f"Measured on {many(found.clips, 'clip')}, padding left out. A few units apart is another kind of "
            "recording; ten or more is a wrong scale.",
            f"Train with --frontend.mean {found.mean:.4f} --frontend.std {found.std:.4f}; to fine-tune a model, keep "
            "the values that it was trained with.",
            found.clips,
        )


def lengths(examined: Examined) -> Iterator[Finding]:
    """Files that are cut short, very long, too short for one frame, or longer than what is heard of them."""
    table = examined.table
    finite, seconds = table["finite"], table["samples"] / np.maximum(table["rate"], 1)
    yield from examined.of_rows(
        np.flatnonzero(finite & (table["samples"] < 0.98 * table["promised"])),
        "truncated",
        "warning",
        "Shorter than their header says",
        "The end is missing, as after a download that was interrupted.",
        "Download or convert them again.",
        lambda row: f"{seconds[row]:.1f} s",
    )
    capped = " Only the first hour of each was checked." if (seconds > LONGEST).any() else ""
    yield from examined.of_rows(
        np.flatnonzero(finite & (seconds > LONG)),
        "very-long",
        "warning",
        f"Longer than {LONG / 60:.0f} minutes",
        f"Training reads and holds all of a file whenever it needs the beginning.{capped}",
        "Cut them into clips, and label each.",
        lambda row: f"{seconds[row] / 60:,.0f} min",
    )
    yield from examined.of_rows(
        np.flatnonzero(finite & (seconds < SHORT)),
        "too-short",
        "warning",
        f"Shorter than one frame of {1000 * SHORT:.0f} ms",
        "The model sees padding alone, and learns their labels from it.",
        "Record or cut them again, or take them out.",
        lambda row: f"{1000 * seconds[row]:.1f} ms",
    )
    yield from _unheard(examined, np.where(finite, seconds, 0))


def _unheard(examined: Examined, seconds: np.ndarray) -> Iterator[Finding]:
    heard = 0.01 * examined.frontend.target_length + 0.015
    cut = np.flatnonzero(seconds > heard + 0.1)
    lost = (seconds[cut] - heard).sum() / max(seconds.sum(), 1e-9)
    yield from examined.of_rows(
        cut,
        "cut",
        "note",
        f"Longer than the {heard:.1f} s that the model hears",
        f"What comes later is never heard: {lost:.1%} of all audio.",
        "If the sounds come later, cut them into clips or raise --frontend.target-length.",
        lambda row: f"{seconds[row]:.1f} s",
    )


def clipping(examined: Examined) -> Iterator[Finding]:
    """Clips recorded too loud, the worst first."""
    table = examined.table
    clipped = np.flatnonzero(table["finite"] & (table["clipped"] >= CLIPPED) & (table["peak"] < LOUD))
    yield from examined.of_rows(
        clipped[np.argsort(-table["clipped"][clipped], kind="stable")],
        "clipped",
        "warning",
        "Clipped",
        "A sample in a thousand or more is at full scale: distortion over the whole spectrum.",
        "Convert or record them again with less gain. A few such clips do no harm.",
        lambda row: f"{table['clipped'][row]:.1%} of its samples",
    )


def rates(examined: Examined) -> Iterator[Finding]:
    """What is resampled whenever it is read."""
    table = examined.table
    other = np.flatnonzero(table["rate"] != SAMPLE_RATE)
    yield from examined.of_rows(
        other,
        "rates",
        "note",
        "Not at 16 kHz",
        f"They are resampled whenever they are read, which costs time: {counted(table['rate'][other] / 1000, 'kHz')}.",
        "psla pack makes a copy at 16 kHz.",
        lambda row: f"{table['rate'][row]:,} Hz",
    )


def counted(values: np.ndarray, unit: str) -> str:
    """The most frequent values, as ``4 kHz (12), 5.5 kHz (3)``."""
    unique, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{unique[k]:g} {unit} ({counts[k]:,})" for k in order[:4])
    return shown + (", ..." if len(unique) > 4 else "")
