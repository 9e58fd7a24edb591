"""What ``psla check`` shows: a page for people, JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from psla_jax.data.findings import SEVERITIES, Examined, Finding, many
from psla_jax.data.sound_findings import counted
from psla_jax.inspection import Report
from psla_jax.terminal import one_line

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
SHOWN = 3
"""Places named per finding; the rest are counted."""
WIDEST = 110
BAR = 40
MOST, RAREST = 12, 8
"""Classes shown of a long list: the most frequent and the rarest."""
MONO = {1: "mono", 2: "stereo"}


def show(report: Report, console: Console) -> None:
    """The page: facts, findings in order of harm, clips per class, and the verdict."""

    def line(text: str | Text = "", style: str = "") -> None:
        # Paths are to be copied: the terminal may break them, nothing else.
        console.print(text if isinstance(text, Text) else Text(text, style), soft_wrap=True)

    line(one_line(report.examined.data.source), "bold")
    for name, value in _facts(report.examined):
        line(f"  {name:<10}{value}")
    for finding in report.findings:
        line()
        for text in _lines(finding, min(console.width, WIDEST)):
            line(text)
    line()
    for text in _histogram(report.examined, "█" if console.encoding.startswith("utf") else "#"):
        line(text)
    line()
    line(_verdict(report))


def _facts(examined: Examined) -> Iterator[tuple[str, str]]:
    table, data = examined.table, examined.data
    labels = np.diff(data.label_offsets)
    yield "clips", f"{len(data):,}, of which {len(table):,} were read"
    yield "labels", f"{labels.sum():,} of {many(examined.known, 'class')}, {labels.min()} to {labels.max()} a clip"
    if not len(table):
        return
    seconds = _seconds(table)
    low, middle, high = np.percentile(seconds, [0, 50, 100])
    yield "length", f"{seconds.sum() / 3600:,.2f} hours; {low:.2f} to {high:.2f} s, median {middle:.2f} s"
    yield "rate", counted(table["rate"] / 1000, "kHz")
    kinds, counts = np.unique(table["channels"], return_counts=True)
    yield "channels", ", ".join(f"{MONO.get(int(k), f'{k} channels')} ({n:,})" for k, n in zip(kinds, counts))
    peak = np.median(table["peak"][table["finite"]]) if table["finite"].any() else 0
    yield "peak", f"median {20 * np.log10(max(peak, 1e-9)):.1f} dB of full scale"
    if examined.log_mel is not None:
        found, config = examined.log_mel, examined.frontend
        yield (
            "log-mel",
            (
                f"{found.mean:.2f} ± {found.std:.2f} on {many(found.clips, 'clip')}; config {config.mean:.2f} ± "
                f"{config.std:.2f}"
            ),
        )


def _seconds(table: np.ndarray) -> np.ndarray:
    return table["samples"] / np.maximum(table["rate"], 1)


def _lines(finding: Finding, width: int) -> Iterator[Text]:
    yield Text.assemble((f"{finding.severity:<9}", COLOURS[finding.severity]), (finding.title, "bold"))
    for line in textwrap.wrap(finding.means, width - 9):
        yield Text(" " * 9 + line)
    for place in finding.places[:SHOWN]:
        yield Text(f"{' ' * 11}{one_line(place)}", "dim")
    if len(finding.places) > SHOWN:
        yield Text(f"{' ' * 11}and {len(finding.places) - SHOWN:,} more", "dim")
    for line in textwrap.wrap(f"-> {finding.remedy}", width - 9, subsequent_indent="   "):
        yield Text(" " * 9 + line, "green")


def _histogram(examined: Examined, block: str) -> Iterator[Text]:
    counts = examined.data.class_counts()[: examined.known]
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    if not order:
        return
    names = {c: one_line(examined.class_name(c)) for c in order}
    few = len(order) <= MOST + RAREST + 1
    shown = order if few else [*order[:MOST], *order[-RAREST:]]
    wide, digits = max(len(names[c]) for c in shown), len(f"{counts.max():,}")
    yield Text("Clips per class", "bold")
    for place, c in enumerate(shown):
        if not few and place == MOST:
            yield Text(f"  ... {len(order) - MOST - RAREST} classes between")
        bar = block * round(BAR * counts[c] / counts.max())
        yield Text(f"  {names[c]:<{wide}}  {counts[c]:>{digits},} {bar}".rstrip())


def _verdict(report: Report) -> Text:
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES}
    found = ", ".join(many(n, severity) for severity, n in counts.items() if n) or "nothing found"
    if report.ok:
        return Text(f"{found}: nothing has to be repaired", "bold green")
    return Text(f"{found}: repair the errors before you train", "bold red")


def to_json(report: Report) -> dict[str, Any]:
    """All that is known, with every place of every finding."""
    examined, table = report.examined, report.examined.table
    counts = examined.data.class_counts()[: examined.known]
    seconds = _seconds(table)
    found, config = examined.log_mel, examined.frontend
    return {
        "datafile": examined.data.source,
        "sha256": examined.data.sha256,
        "ok": report.ok,
        "clips": len(examined.data),
        "read": len(table),
        "seconds": {
            "sum": float(seconds.sum()),
            **dict(
                zip(
                    ("shortest", "median", "longest"),
                    np.percentile(seconds, [0, 50, 100]).tolist() if len(table) else (),
                )
            ),
        },
        "rates": _frequencies(table["rate"]),
        "channels": _frequencies(table["channels"]),
        "log_mel": None
        if found is None
        else {
            "mean": found.mean,
            "std": found.std,
            "clips": found.clips,
            "config_mean": config.mean,
            "config_std": config.std,
        },
        "classes": [
            {"mid": examined.mids[c], "name": examined.class_name(c), "clips": int(counts[c])}
            for c in range(examined.known)
        ],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "title": finding.title,
                "means": finding.means,
                "remedy": finding.remedy,
                "count": finding.count,
                "places": list(finding.places),
            }
            for finding in report.findings
        ],
    }


def _frequencies(values: np.ndarray) -> dict[str, int]:
    unique, counts = np.unique(values, return_counts=True)
    return {str(value): int(count) for value, count in zip(unique, counts)}
