"""Checks of the audio of single clips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from psla_jax.data.validate.findings import Finding, MeasuredDataset, finding_for_items, format_count
from psla_jax.data.validate.measure import MAX_SECONDS

INTEGER_PEAK, LOUD_PEAK = 16.0, 1.5
"""Peaks, relative to full scale, from which floating-point samples are unscaled integers, and are too loud."""
SCALED_TWICE_PEAK = 2.0**-15
"""Peak below which floating-point samples were divided by 32768 once too often."""
SILENCE_PEAK = 1e-3
"""Peak below which a clip is silent, -60 dB."""
CLIPPED_FRACTION = 1e-3
"""Fraction of samples at full scale from which a clip is clipped."""
MIN_BANDWIDTH = 0.875
"""Least bandwidth as a fraction of the highest frequency of model inputs, 7000 of 8000 Hz by default; resamplers begin
to cut a little below half the sample rate."""
LONG_SECONDS = 600.0
MAX_MEAN_OFFSET, MAX_STD_RATIO = 0.5, 1.25
"""Largest accepted difference of the log-mel mean, in standard deviations, and ratio of the standard deviations."""


def check_readability(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports files that are missing, are not audio or contain samples that no recording can have."""
    yield from finding_for_items(
        [f"{problem.path} {problem.reason}" for problem in dataset.measurements.problems],
        "unreadable",
        "error",
        "Clips that cannot be read",
        "Training stops before its first step.",
        "Repair the files or remove them from the datafile; --data.unreadable skip trains without them.",
        "clip",
        len(dataset.datafile),
    )


def check_completeness(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports files that end before the length in their header, have no end, or are damaged."""
    notes = dataset.measurements.notes
    yield from dataset.finding_for_rows(
        np.flatnonzero([bool(of_clip) for of_clip in notes]),
        "truncated",
        "warning",
        "Incomplete or damaged",
        "A part of the recording is missing, for example after an interrupted download, and the model learns the "
        "labels of these clips from the rest.",
        "Download or convert the files again.",
        lambda row: " ".join(notes[row]),
    )


def check_scale(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports floating-point files that were never divided by 32768, or twice, and peaks far beyond full scale."""
    table = dataset.table
    peak = table["peak"]
    integers = table["is_float"] & (peak >= INTEGER_PEAK)

    def detail(row: int) -> str:
        return f"peak {peak[row]:.3g}"

    yield from dataset.finding_for_rows(
        np.flatnonzero(integers),
        "scale-integers",
        "error",
        "Integer samples in a floating-point file",
        "Full scale of a floating-point file is 1, so these clips are thousands of times louder than others.",
        "Divide the samples by 32768 (for 16-bit integers) and write the files again, preferably as 16-bit PCM.",
        detail,
    )
    yield from dataset.finding_for_rows(
        np.flatnonzero(_scaled_twice(table)),
        "scale-twice",
        "error",
        "Floating-point samples scaled down twice",
        "The peak is below one step of 16 bits: the samples were divided by 32768 although they were already on the "
        "scale of [-1, 1], and are 90 dB too quiet.",
        "Multiply the samples by 32768 and write the files again, preferably as 16-bit PCM.",
        detail,
    )
    yield from dataset.finding_for_rows(
        np.flatnonzero((peak >= LOUD_PEAK) & ~integers),
        "loud",
        "warning",
        "Peaks far beyond full scale",
        "The samples are not relative to full scale but, for example, to the loudness of the clip, so levels cannot be "
        "compared between clips.",
        "Write all clips with the same scale.",
        detail,
    )


def _scaled_twice(table: np.ndarray) -> np.ndarray:
    return table["is_float"] & (table["peak"] > 0) & (table["peak"] < SCALED_TWICE_PEAK)


def check_silence(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports silent clips."""
    table = dataset.table

    def detail(row: int) -> str:
        if table["peak"][row] == 0:
            return "all samples are 0"
        if table["peak"][row] >= SILENCE_PEAK:
            return "its channels cancel each other"
        return f"peak {20 * np.log10(table['peak'][row]):.0f} dB"

    yield from dataset.finding_for_rows(
        np.flatnonzero((table["mono_peak"] < SILENCE_PEAK) & ~_scaled_twice(table)),
        "silent",
        "warning",
        "Silent, nothing above -60 dB",
        "The model learns the labels of these clips from silence. Often a download or a conversion has failed.",
        "Download or record the clips again, or remove them from the datafile. If their channels cancel each other, "
        "use --data.channel first.",
        detail,
    )


def check_bandwidth(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports clips without the upper part of the frequency range of the model."""
    table, top = dataset.table, dataset.frontend.top_hz
    limited = np.flatnonzero(table["bandwidth"] < MIN_BANDWIDTH * top)
    num_upsampled = int((table["rate"][limited] >= 2 * top).sum())
    upsampled = f" {format_count(num_upsampled, 'file')} probably upsampled." if num_upsampled else ""
    cutoffs = format_values(np.round(table["bandwidth"][limited] / 1000, 1), "kHz")
    yield from dataset.finding_for_rows(
        limited,
        "band",
        "warning",
        f"Nothing above {MIN_BANDWIDTH * top / 1000:g} kHz",
        f"The spectrum ends at {cutoffs}.{upsampled} Model inputs extend to {top / 1000:g} kHz: if only some classes "
        "or data sets are band-limited, the model learns to recognise the cutoff.",
        "Use recordings of full bandwidth, or limit the bandwidth of all data sets equally.",
        lambda row: f"{table['rate'][row]:,} Hz, ends at {table['bandwidth'][row] / 1000:.1f} kHz",
    )


def check_log_mel(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports log-mel statistics that differ from those of the config."""
    measured, config = dataset.log_mel, dataset.frontend
    if measured is None:
        return
    mean = measured.mean if config.mean == "auto" else config.mean
    std = measured.std if config.std == "auto" else config.std
    offset, ratio = abs(measured.mean - mean) / max(std, 1e-9), measured.std / max(std, 1e-9)
    if offset > MAX_MEAN_OFFSET or not 1 / MAX_STD_RATIO < ratio < MAX_STD_RATIO:
        yield Finding(
            "log-mel",
            "warning",
            f"Normalisation does not fit the data: log-mel {measured.mean:.2f} ± {measured.std:.2f}, "
            f"config {mean:.2f} ± {std:.2f}",
            f"Measured on {format_count(measured.num_clips, 'clip')} without padding. A mean that is off by a few "
            "units indicates another type of recording, by ten or more a wrong scale.",
            f"Train with --frontend.mean {measured.mean:.4f} --frontend.std {measured.std:.4f}; to fine-tune a model, "
            "keep the values that it was trained with.",
            measured.num_clips,
        )


def check_lengths(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports files that are very long, shorter than a frame, or longer than the input of the model."""
    seconds = dataset.seconds
    capped = " Only the first hour of each file was checked." if (seconds > MAX_SECONDS).any() else ""
    yield from dataset.finding_for_rows(
        np.flatnonzero(seconds > LONG_SECONDS),
        "very-long",
        "warning",
        f"Longer than {LONG_SECONDS / 60:.0f} minutes",
        f"Training decodes the first {LONG_SECONDS / 60:.0f} minutes on every access and uses only the beginning."
        f"{capped}",
        "Cut the files into clips, and label each clip.",
        lambda row: f"{seconds[row] / 60:,.0f} min",
    )
    frontend = dataset.frontend
    yield from dataset.finding_for_rows(
        np.flatnonzero(seconds < frontend.window / 1000),
        "too-short",
        "warning",
        f"Shorter than one frame of {frontend.window:g} ms",
        "The input of the model consists of padding, and the model learns the labels of these clips from it.",
        "Record or cut the clips again, or remove them from the datafile.",
        lambda row: f"{1000 * seconds[row]:.1f} ms",
    )
    input_seconds = frontend.num_samples / frontend.sample_rate
    cut = np.flatnonzero(seconds > input_seconds + 0.1)
    unused = (seconds[cut] - input_seconds).sum() / max(seconds.sum(), 1e-9)
    yield from dataset.finding_for_rows(
        cut,
        "cut",
        "note",
        f"Longer than the {input_seconds:.1f} s input of the model",
        f"The rest of these clips is not used: {unused:.1%} of all audio.",
        "If labelled sounds occur later, cut the recordings into clips or increase --frontend.target-length.",
        lambda row: f"{seconds[row]:.1f} s",
    )


def check_clipping(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports clipped recordings, the worst first."""
    table = dataset.table
    clipped = np.flatnonzero((table["clipped"] >= CLIPPED_FRACTION) & (table["peak"] < LOUD_PEAK))
    yield from dataset.finding_for_rows(
        clipped[np.argsort(-table["clipped"][clipped], kind="stable")],
        "clipped",
        "warning",
        "Clipped",
        "At least one sample in a thousand is at full scale, which distorts the whole spectrum.",
        "Convert or record the clips again with less gain. A small number of such clips does no harm.",
        lambda row: f"{table['clipped'][row]:.1%} of its samples",
    )


def check_rates(dataset: MeasuredDataset) -> Iterator[Finding]:
    """Reports clips that are resampled on every access."""
    table, rate = dataset.table, dataset.frontend.sample_rate
    other = np.flatnonzero(table["rate"] != rate)
    rates = format_values(table["rate"][other] / 1000, "kHz")
    yield from dataset.finding_for_rows(
        other,
        "rates",
        "note",
        f"Not at {rate / 1000:g} kHz",
        f"Training resamples these clips on every access, which costs time: {rates}.",
        f"Write a copy at {rate / 1000:g} kHz with psla pack{'' if rate == 16_000 else f' --sample-rate {rate}'}.",
        lambda row: f"{table['rate'][row]:,} Hz",
    )


def format_values(values: np.ndarray, unit: str) -> str:
    """Formats the four most frequent values with their counts, such as ``4 kHz (12), 5.5 kHz (3)``."""
    unique, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{unique[k]:g} {unit} ({counts[k]:,})" for k in order[:4])
    return shown + (", ..." if len(unique) > 4 else "")
