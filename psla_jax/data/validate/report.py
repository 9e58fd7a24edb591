"""Output of ``psla check``: a report for the screen, and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from psla_jax.audio.segments import WHOLE
from psla_jax.data.validate.audio import format_values
from psla_jax.data.validate.findings import SEVERITIES, Finding, MeasuredDataset, format_count
from psla_jax.data.validate.run import Report
from psla_jax.runtime.terminal import one_line

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
MAX_ITEMS = 3
"""Number of affected clips, files or classes listed per finding; the others are counted."""
MAX_WIDTH = 110
BAR_WIDTH = 40
NUM_FREQUENT, NUM_RARE = 12, 8
"""Number of most frequent and of rarest classes that are listed of a large vocabulary."""
CHANNEL_NAMES = {1: "mono", 2: "stereo"}


def print_report(report: Report, console: Console) -> None:
    """Prints the properties of the data set, the findings, the clips per class and a verdict."""
    block = "█" if console.encoding.startswith("utf") else "#"
    for line in _report_lines(report, min(console.width, MAX_WIDTH), block):
        console.print(line, soft_wrap=True)  # so that paths can be copied


def _report_lines(report: Report, width: int, block: str) -> Iterator[Text]:
    yield Text(one_line(report.dataset.datafile.source), "bold")
    yield from (Text(f"  {name:<10}{value}") for name, value in _properties(report.dataset))
    for finding in report.findings:
        yield Text()
        yield from _finding_lines(finding, width)
    yield Text()
    yield from _histogram(report.dataset, block)
    yield Text()
    yield _verdict(report)


def _properties(dataset: MeasuredDataset) -> Iterator[tuple[str, str]]:
    table, data = dataset.table, dataset.datafile
    labels, classes = np.diff(data.label_offsets), format_count(dataset.num_known_classes, "class")
    yield "clips", f"{len(data):,}, of which {len(table):,} were read"
    if data.times is not None:
        is_segment = (data.times != WHOLE).any(axis=1)
        recordings = {data.path(clip) for clip in np.flatnonzero(is_segment).tolist()}
        yield "segments", f"{is_segment.sum():,} of the clips, of {format_count(len(recordings), 'recording')}"
    yield "labels", f"{labels.sum():,} of {classes}, {labels.min()} to {labels.max()} per clip"
    if not len(table):
        return
    seconds = dataset.seconds
    shortest, median, longest = np.percentile(seconds, [0, 50, 100])
    yield "length", f"{seconds.sum() / 3600:,.2f} hours; {shortest:.2f} to {longest:.2f} s, median {median:.2f} s"
    yield "rate", format_values(table["rate"] / 1000, "kHz")
    channels = zip(*np.unique(table["channels"], return_counts=True))
    yield "channels", ", ".join(f"{CHANNEL_NAMES.get(int(k), f'{k} channels')} ({n:,})" for k, n in channels)
    yield "peak", f"median {20 * np.log10(max(np.median(table['peak']), 1e-9)):.1f} dB of full scale"
    if dataset.log_mel is not None:
        measured, config = dataset.log_mel, dataset.frontend
        clips = format_count(measured.num_clips, "clip")
        value = f"{measured.mean:.2f} ± {measured.std:.2f} on {clips}; config {config.mean:.2f} ± {config.std:.2f}"
        yield "log-mel", value


def _finding_lines(finding: Finding, width: int) -> Iterator[Text]:
    yield Text.assemble((f"{finding.severity:<9}", COLOURS[finding.severity]), (finding.title, "bold"))
    wrapper = textwrap.TextWrapper(width - 9, break_on_hyphens=False)  # so that options are not split
    yield from (Text(" " * 9 + line) for line in wrapper.wrap(finding.meaning))
    yield from (Text(f"{' ' * 11}{one_line(item)}", "dim") for item in finding.items[:MAX_ITEMS])
    if len(finding.items) > MAX_ITEMS:
        yield Text(f"{' ' * 11}and {len(finding.items) - MAX_ITEMS:,} more", "dim")
    wrapper.subsequent_indent = "   "
    yield from (Text(" " * 9 + line, "green") for line in wrapper.wrap(f"-> {finding.remedy}"))


def _histogram(dataset: MeasuredDataset, block: str) -> Iterator[Text]:
    counts = dataset.datafile.class_counts()[: dataset.num_known_classes]
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    if not order:
        return
    names = {c: one_line(dataset.class_name(c)) for c in order}
    omitted = len(order) - NUM_FREQUENT - NUM_RARE
    shown = order if omitted <= 1 else [*order[:NUM_FREQUENT], *order[-NUM_RARE:]]
    name_width, count_width = max(len(names[c]) for c in shown), len(f"{counts.max():,}")
    yield Text("Clips per class", "bold")
    for position, c in enumerate(shown):
        if omitted > 1 and position == NUM_FREQUENT:
            yield Text(f"  ... {omitted} classes omitted")
        bar = block * round(BAR_WIDTH * counts[c] / counts.max())
        yield Text(f"  {names[c]:<{name_width}}  {counts[c]:>{count_width},} {bar}".rstrip())


def _verdict(report: Report) -> Text:
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES}
    summary = ", ".join(format_count(n, severity) for severity, n in counts.items() if n) or "no findings"
    if report.ok:
        return Text(f"{summary}: the data set can be used for training", "bold green")
    return Text(f"{summary}: repair the errors before training", "bold red")


def report_to_json(report: Report) -> dict[str, Any]:
    """Returns the report as JSON values, with all items of every finding."""
    dataset, table = report.dataset, report.dataset.table
    counts = dataset.datafile.class_counts()[: dataset.num_known_classes]
    seconds, log_mel = dataset.seconds, dataset.log_mel
    percentiles = np.percentile(seconds, [0, 50, 100]).tolist() if len(table) else ()
    return {
        "datafile": dataset.datafile.source,
        "sha256": dataset.datafile.sha256,
        "ok": report.ok,
        "clips": len(dataset.datafile),
        "read": len(table),
        "seconds": {"sum": float(seconds.sum()), **dict(zip(("shortest", "median", "longest"), percentiles))},
        "rates": _frequencies(table["rate"]),
        "channels": _frequencies(table["channels"]),
        "log_mel": log_mel
        and {
            "mean": log_mel.mean,
            "std": log_mel.std,
            "clips": log_mel.num_clips,
            "config_mean": dataset.frontend.mean,
            "config_std": dataset.frontend.std,
        },
        "classes": [
            {"mid": dataset.mids[c], "name": dataset.class_name(c), "clips": int(count)}
            for c, count in enumerate(counts)
        ],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "title": finding.title,
                "means": finding.meaning,
                "remedy": finding.remedy,
                "count": finding.count,
                "places": list(finding.items),
            }
            for finding in report.findings
        ],
    }


def _frequencies(values: np.ndarray) -> dict[str, int]:
    return {str(value): int(count) for value, count in zip(*np.unique(values, return_counts=True))}
