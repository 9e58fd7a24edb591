"""Tables of a run: the reference's CSV files, with headers, and the summary on the screen."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
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


def without_epochs(model: str) -> str:
    """Returns the name of a row of the summary without its epochs, which differ between runs."""
    return re.sub(r" \([^)]*\)", "", model)


def epoch_columns(rows: Sequence[EpochRow]) -> tuple[str, ...]:
    """Returns the columns of ``result.csv`` for these rows: those that all of them have, the usual ones first."""
    return (*EPOCH_COLUMNS, *(name for name in rows[0] if name not in EPOCH_COLUMNS and all(name in r for r in rows)))


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
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Values of the setting ``metrics``, by name of the set and of the metric."""

    def columns(self) -> dict[str, float]:
        """Returns mAP, AUC, where defined accuracy, and further metrics of every set, as in the reference's files."""
        columns: dict[str, float] = {}
        for kind, metrics in self.sets.items():
            columns |= {f"{kind}_mAP": metrics.mAP, f"{kind}_mAUC": metrics.mAUC}
            columns |= {} if math.isnan(metrics.accuracy) else {f"{kind}_{ACCURACY}": metrics.accuracy}
            columns |= {f"{kind}_{name}": value for name, value in self.further.get(kind, {}).items()}
        return columns

    def to_json(self) -> dict[str, Any]:
        """Returns all metrics by name of the set, for ``summary.json``."""
        return {kind: self._json_metrics(kind) for kind in self.sets}

    def _json_metrics(self, kind: str) -> dict[str, Any]:
        values = {name: value for name, value in vars(self.sets[kind]).items() if not name.startswith("per_class_")}
        if kind in self.intervals:
            values["mAP_interval"] = [self.intervals[kind].low, self.intervals[kind].high]
        return json_value({**values, **self.further.get(kind, {})})


def json_value(value: Any) -> Any:
    """Returns dictionaries, lists and numbers with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(console: Console, models: Sequence[ModelSummary], title: str) -> None:
    """Prints the table at the end of a run, with one row per set and model."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("set")
    table.add_column("model", overflow="fold")
    single = any(not math.isnan(metrics.accuracy) for model in models for metrics in model.sets.values())
    names = {name: None for model in models for values in model.further.values() for name in values}
    further = [name for name in names if not (single and name == ACCURACY)]
    for column in ("mAP", "95% interval", "AUC", "d'", *([ACCURACY] if single else []), *further):
        table.add_column(column, justify="right", no_wrap=True)
    for kind in models[0].sets:
        for model in models:
            values = [f"{model.further.get(kind, {}).get(name, math.nan):.4f}" for name in further]
            table.add_row(kind, model.name, *_cells(model.sets[kind], model.intervals.get(kind), single), *values)
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


def results(models: Sequence[ModelSummary]) -> dict[str, float]:
    """Returns the main metrics of every row of the summary, such as ``evaluation/best_single_mAP``."""
    values: dict[str, float] = {}
    for model in models:
        name = re.sub(r"\W+", "_", without_epochs(model.name))
        for kind, metrics in model.sets.items():
            own = {"mAP": metrics.mAP, ACCURACY: metrics.accuracy, **model.further.get(kind, {})}
            values |= {f"{kind}/{name}_{metric}": value for metric, value in own.items()}
    return values


Measured = tuple[Metrics, Mapping[str, float]]
"""The metrics of a model, and further ones by name."""


def ensemble_lines(names: Sequence[str], members: Sequence[Measured], combined: Measured) -> list[str]:
    """Returns the lines of the reference's ensemble summary: one per model, and one for their ensemble."""
    lines = ["---------------Ensemble Result Summary---------------"]
    lines += [f"Model {i} {name} {_line(*measured)}" for i, (name, measured) in enumerate(zip(names, members))]
    return [*lines, f"Ensemble {len(members)} Models {_line(*combined)}"]


def _line(metrics: Metrics, further: Mapping[str, float]) -> str:
    values = {"mAP": metrics.mAP, "AUC": metrics.mAUC, "d-prime": metrics.d_prime}
    values |= {} if math.isnan(metrics.accuracy) else {ACCURACY: metrics.accuracy}
    return ", ".join(f"{name}: {value:.6f}" for name, value in {**values, **further}.items())
