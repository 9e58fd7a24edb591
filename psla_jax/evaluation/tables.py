"""Tables of a run: the reference's CSV files, with headers, and the summary on the screen."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from psla_jax.evaluation.metrics import Interval, Metrics
from psla_jax.runtime.files import atomic_text

EPOCH_COLUMNS = (
    "epoch", "mAP", "mAUC", "precision", "recall", "d_prime", "train_loss", "valid_loss", "ensemble_mAP",
    "ensemble_mAUC", "learning_rate",
)  # fmt: skip
ACCURACY = "accuracy"
"""Additional last column if every clip of the scored set has exactly one label."""
EpochRow = dict[str, float]
"""Values of one epoch by column."""


def epoch_columns(rows: Sequence[EpochRow]) -> tuple[str, ...]:
    """Returns the columns of ``result.csv`` for these rows."""
    return (*EPOCH_COLUMNS, ACCURACY) if all(ACCURACY in row for row in rows) else EPOCH_COLUMNS


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_text(path) as file:
        file.write(text)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header atomically; floats have nine significant digits."""
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([f"{row[c]:.9g}" if isinstance(row[c], float) else str(row[c]) for c in columns])


@dataclass(frozen=True)
class ModelSummary:
    """Results of one model or ensemble: metrics and confidence interval of the mAP, by name of the evaluated set."""

    name: str
    sets: Mapping[str, Metrics]
    intervals: Mapping[str, Interval]

    def columns(self) -> dict[str, float]:
        """Returns mAP, AUC and, where defined, accuracy of every set, as in the reference's single-row files."""
        columns: dict[str, float] = {}
        for kind, metrics in self.sets.items():
            columns |= {f"{kind}_mAP": metrics.mAP, f"{kind}_mAUC": metrics.mAUC}
            columns |= {} if math.isnan(metrics.accuracy) else {f"{kind}_{ACCURACY}": metrics.accuracy}
        return columns

    def to_json(self) -> dict[str, Any]:
        """Returns all metrics by name of the set, for ``summary.json``."""
        return {kind: _json_metrics(metrics, self.intervals.get(kind)) for kind, metrics in self.sets.items()}


def _json_metrics(metrics: Metrics, interval: Interval | None) -> dict[str, Any]:
    values = {name: value for name, value in vars(metrics).items() if not name.startswith("per_class_")}
    if interval is not None:
        values["mAP_interval"] = [interval.low, interval.high]
    return json_value(values)


def json_value(value: Any) -> Any:
    """Returns dictionaries, lists and numbers with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(console: Console, models: Sequence[ModelSummary], title: str) -> None:
    """Prints the table at the end of a run, with one row per set and model."""
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    table.add_column("model", overflow="fold")
    single = any(not math.isnan(metrics.accuracy) for model in models for metrics in model.sets.values())
    for column in ("mAP", "95% interval", "AUC", "d'", *([ACCURACY] if single else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for kind in models[0].sets:
        for model in models:
            table.add_row(kind, model.name, *_cells(model.sets[kind], model.intervals.get(kind), single))
        table.add_section()
    console.print(table)
    for kind, metrics in models[0].sets.items():
        console.print(coverage(kind, metrics))


def _cells(metrics: Metrics, interval: Interval | None, single: bool) -> list[str]:
    ci = "-" if interval is None else f"{interval.low:.3f}-{interval.high:.3f}"
    cells = [f"{metrics.mAP:.4f}", ci, f"{metrics.mAUC:.4f}", f"{metrics.d_prime:.3f}"]
    return [*cells, "-" if math.isnan(metrics.accuracy) else f"{metrics.accuracy:.4f}"] if single else cells


def coverage(kind: str, metrics: Metrics) -> str:
    """Returns a line with the number of clips and of scored classes of a set."""
    absent = metrics.num_classes - metrics.num_scored
    left_out = f", {absent} without a positive clip left out" if absent else ""
    return f"{kind}: {metrics.num_clips} clips, {metrics.num_scored} of {metrics.num_classes} classes scored{left_out}"


def ensemble_lines(names: Sequence[str], members: Sequence[Metrics], combined: Metrics) -> list[str]:
    """Returns the lines of the reference's ensemble summary: one per model, and one for their ensemble."""
    lines = ["---------------Ensemble Result Summary---------------"]
    lines += [f"Model {i} {name} {_line(metrics)}" for i, (name, metrics) in enumerate(zip(names, members))]
    return [*lines, f"Ensemble {len(members)} Models {_line(combined)}"]


def _line(metrics: Metrics) -> str:
    line = f"mAP: {metrics.mAP:.6f}, AUC: {metrics.mAUC:.6f}, d-prime: {metrics.d_prime:.6f}"
    return line if math.isnan(metrics.accuracy) else f"{line}, accuracy: {metrics.accuracy:.6f}"
