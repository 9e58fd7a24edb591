"""The tables of a run: the reference's CSV files, with headers, and what is shown on the screen."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from psla_jax.files import written_aside
from psla_jax.metrics import Interval, Metrics

EPOCH_COLUMNS = (
    "epoch", "mAP", "mAUC", "precision", "recall", "d_prime", "train_loss", "valid_loss", "ensemble_mAP",
    "ensemble_mAUC", "learning_rate",
)  # fmt: skip
ACCURACY = "accuracy"
"""Last column where every clip of the scored set has exactly one label."""
Row = dict[str, float]


def epoch_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of ``result.csv`` for these rows."""
    return (*EPOCH_COLUMNS, ACCURACY) if all(ACCURACY in row for row in rows) else EPOCH_COLUMNS


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: aside first, then renamed."""
    with written_aside(path) as file:
        file.write(text)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV with a header; numbers have nine significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    write_text(path, text.getvalue())


def _cell(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Measured:
    """One model, or ensemble, of the summary: metrics per evaluated set and the interval of its mAP there."""

    name: str
    sets: Mapping[str, Metrics]
    intervals: Mapping[str, Interval]

    def columns(self) -> dict[str, float]:
        """mAP and AUC of every set, as in the reference's single-row files, and the accuracy where there is one."""
        columns: dict[str, float] = {}
        for kind, metrics in self.sets.items():
            columns |= {f"{kind}_mAP": metrics.mAP, f"{kind}_mAUC": metrics.mAUC}
            columns |= {} if math.isnan(metrics.accuracy) else {f"{kind}_{ACCURACY}": metrics.accuracy}
        return columns

    def to_json(self) -> dict[str, Any]:
        """All figures, for ``summary.json``."""
        return {kind: _figures(metrics, self.intervals.get(kind)) for kind, metrics in self.sets.items()}


def _figures(metrics: Metrics, interval: Interval | None) -> dict[str, Any]:
    names = ("mAP", "mAUC", "d_prime", "precision", "recall", "accuracy", "num_clips", "num_classes", "num_scored")
    figures = {name: getattr(metrics, name) for name in names}
    if interval is not None:
        figures["mAP_interval"] = [interval.low, interval.high]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def show_summary(console: Console, measured: Sequence[Measured], title: str) -> None:
    """The table that a run ends with: a row per set and model."""
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    table.add_column("model", overflow="fold")
    single = any(not math.isnan(metrics.accuracy) for row in measured for metrics in row.sets.values())
    for column in ("mAP", "95% interval", "AUC", "d'", *([ACCURACY] if single else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for kind in measured[0].sets:
        for row in measured:
            table.add_row(kind, row.name, *_cells(row.sets[kind], row.intervals.get(kind), single))
        table.add_section()
    console.print(table)
    for kind, metrics in measured[0].sets.items():
        console.print(counted(kind, metrics))


def _cells(metrics: Metrics, interval: Interval | None, single: bool) -> list[str]:
    spread = "-" if interval is None else f"{interval.low:.3f}-{interval.high:.3f}"
    cells = [f"{metrics.mAP:.4f}", spread, f"{metrics.mAUC:.4f}", f"{metrics.d_prime:.3f}"]
    return [*cells, "-" if math.isnan(metrics.accuracy) else f"{metrics.accuracy:.4f}"] if single else cells


def counted(kind: str, metrics: Metrics) -> str:
    """How much stands behind the figures of a set: clips, and classes with a positive one."""
    absent = metrics.num_classes - metrics.num_scored
    left_out = f", {absent} without a positive clip left out" if absent else ""
    return f"{kind}: {metrics.num_clips} clips, {metrics.num_scored} of {metrics.num_classes} classes scored{left_out}"


def ensemble_lines(names: Sequence[str], members: Sequence[Metrics], combined: Metrics) -> list[str]:
    """The reference's ensemble summary: a line per model, one for all together."""
    lines = ["---------------Ensemble Result Summary---------------"]
    lines += [f"Model {i} {name} {_line(metrics)}" for i, (name, metrics) in enumerate(zip(names, members))]
    return [*lines, f"Ensemble {len(members)} Models {_line(combined)}"]


def _line(metrics: Metrics) -> str:
    line = f"mAP: {metrics.mAP:.6f}, AUC: {metrics.mAUC:.6f}, d-prime: {metrics.d_prime:.6f}"
    return line if math.isnan(metrics.accuracy) else f"{line}, accuracy: {metrics.accuracy:.6f}"
