"""Prints a calibration on the screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psla_jax.tagging.calibration.model import CalibratedClass, Calibration
from psla_jax.vocabulary.vocabulary import Vocabulary

DEFAULT_TOP = 12
"""Maximum number of classes in the table, and of class names in a line."""
PROBABILITY_ROWS = dict(ece="calibration error", ece_per_class="calibration error, class mean", brier="Brier score")
DECISION_ROWS = dict(micro_f1="micro F1", macro_f1="macro F1", precision="precision", recall="recall")


def print_report(console: Console, calibration: Calibration, vocabulary: Vocabulary) -> None:
    """Prints a summary of the fit, its metrics, and the classes with the most positive clips."""
    fitted, metrics = calibration.fitted, calibration.metrics
    for line in _summary(calibration, vocabulary):
        console.print(line, markup=False, highlight=False)
    fixed = {name: name for name in metrics if name.startswith("score")}
    columns = {"held_out": "held out", "fitted": "fitted"}
    console.print(
        _metrics_table(metrics, PROBABILITY_ROWS, {"raw": "score", **columns}),
        _metrics_table(metrics, DECISION_ROWS, {**fixed, **columns}),
    )
    console.print(
        f"held out: {fitted['folds']} folds of the clips, each calibrated by a fit to the other folds; fitted: on the "
        "clips of the fit itself, which is too optimistic",
        markup=False, highlight=False,
    )  # fmt: skip
    console.print(_class_table(calibration, vocabulary))
    if len(calibration.classes) > DEFAULT_TOP:
        console.print(f"... and {len(calibration.classes) - DEFAULT_TOP} more: --json FILE writes all", markup=False)


def _summary(calibration: Calibration, vocabulary: Vocabulary) -> list[str]:
    """Returns lines on the data, the settings, and the classes without their own calibrator or threshold."""
    fitted, classes = calibration.fitted, calibration.classes
    aim = "the best F1" if fitted["precision"] is None else f"a precision of {fitted['precision']:g}"
    own = [entry for entry in classes if entry.positives and entry.calibrator is not None]
    sharing = [entry for entry in classes if entry.positives and entry.calibrator is None]
    rare = [entry for entry in sharing if entry.positives < fitted["min_positives"]]
    uninformative = [entry for entry in sharing if entry.positives >= fitted["min_positives"]]
    absent = [entry for entry in classes if not entry.positives]
    unreachable = [entry for entry, limit in zip(classes, calibration.calibrators.thresholds) if math.isinf(limit)]
    groups = (
        (rare, f"with fewer than {fitted['min_positives']} clips (shared threshold and curve)"),
        (uninformative, "whose clips score no higher than others (shared threshold and curve)"),
        (absent, "without any clip (shared threshold and curve, not evaluated)"),
        (unreachable, "for which no threshold has this precision (never present)"),
    )
    return [
        f"{fitted['clips']:,} clips of {fitted['data']}: thresholds with {aim}, {fitted['method']} probabilities",
        f"{_count(own)} of {len(classes)} with their own threshold and curve",
        *(f"{_count(entries)} {text}: {_names(entries, vocabulary)}" for entries, text in groups if entries),
    ]


def _count(entries: Sequence[CalibratedClass]) -> str:
    return f"{len(entries)} {'class' if len(entries) == 1 else 'classes'}"


def _names(entries: Sequence[CalibratedClass], vocabulary: Vocabulary) -> str:
    names = [vocabulary.names[vocabulary.index(entry.mid)] for entry in entries[:DEFAULT_TOP]]
    return ", ".join(names) + (f" and {len(entries) - DEFAULT_TOP} more" if len(entries) > DEFAULT_TOP else "")


def _metrics_table(metrics: Any, rows: dict[str, str], columns: dict[str, str]) -> Table:
    table = _table("", columns.values())
    for row, label in rows.items():
        table.add_row(label, *(_cell(metrics[column][row]) for column in columns))
    return table


def _class_table(calibration: Calibration, vocabulary: Vocabulary) -> Table:
    table = _table("class", ("clips", "threshold", "precision", "recall", "F1", "held-out F1"))
    pairs = sorted(zip(calibration.classes, calibration.calibrators.thresholds), key=lambda pair: -pair[0].positives)
    for entry, threshold in pairs[:DEFAULT_TOP]:
        fitted, held_out = entry.metrics.get("fitted", {}), entry.metrics.get("held_out", {})
        values = (*(fitted.get(name) for name in ("precision", "recall", "f1")), held_out.get("f1"))
        limit = "never" if math.isinf(threshold) else f"{threshold:.3f}{'' if entry.calibrator else ' shared'}"
        name = vocabulary.names[vocabulary.index(entry.mid)]
        table.add_row(escape(name), str(entry.positives), limit, *map(_cell, values))
    return table


def _table(first: str, others: Iterable[str]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column(first, header_style="dim", overflow="fold")
    for title in others:
        table.add_column(title, justify="right", header_style="dim")
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"
