"""A calibration as people read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psla_jax.calibration import CalibratedClass, Calibration
from psla_jax.ontology import Vocabulary

SHOWN = 12
"""Classes in the table, and named in a sentence; the file has all."""
RELIABILITY = {"ece": "calibration error", "ece_per_class": "the same, mean of classes", "brier": "Brier score"}
DECISIONS = {"micro_f1": "micro F1", "macro_f1": "macro F1", "precision": "precision", "recall": "recall"}


def show(console: Console, calibration: Calibration, vocabulary: Vocabulary) -> None:
    """What was fitted to what, how well it does, and the classes with the most positives."""
    fitted, figures = calibration.fitted, calibration.figures
    for line in _lines(calibration, vocabulary):
        console.print(line, markup=False, highlight=False)
    fixed = [name for name in figures if name.startswith("score")]
    console.print(
        _figures(figures, RELIABILITY, {"raw": "score", "held_out": "held out", "fitted": "fitted"}),
        _figures(figures, DECISIONS, {**{name: name for name in fixed}, "held_out": "held out", "fitted": "fitted"}),
    )
    console.print(
        f"held out: each of {fitted['folds']} folds of the clips by what was fitted to the others; fitted: on the "
        "clips that it was fitted to, and too good for that",
        markup=False, highlight=False,
    )  # fmt: skip
    console.print(_classes(calibration, vocabulary))
    if len(calibration.classes) > SHOWN:
        console.print(f"... and {len(calibration.classes) - SHOWN} more: --json FILE writes all", markup=False)


def _lines(calibration: Calibration, vocabulary: Vocabulary) -> list[str]:
    """In sentences: what was fitted to how much, and which classes are special."""
    fitted, classes = calibration.fitted, calibration.classes
    aim = "the best F1" if fitted["precision"] is None else f"a precision of {fitted['precision']:g}"
    lines = [f"{fitted['clips']:,} clips of {fitted['data']}: thresholds of {aim}, {fitted['method']} probabilities"]
    absent = [entry for entry in classes if not entry.positives]
    sharing = [entry for entry in classes if entry.positives and entry.own is None]
    few = [entry for entry in sharing if entry.positives < fitted["min_positives"]]
    blind = [entry for entry in sharing if entry.positives >= fitted["min_positives"]]
    own = len(classes) - len(sharing) - len(absent)
    lines.append(f"{_count(own, 'class')} of {len(classes)} with a threshold and a curve of their own")
    if few:
        lines.append(
            f"{_count(len(few), 'class')} with fewer than {fitted['min_positives']} clips, sharing one of each: "
            f"{_named(few, vocabulary)}"
        )
    if blind:
        lines.append(
            f"{_count(len(blind), 'class')} whose clips score no higher than others, taking the shared ones too: "
            f"{_named(blind, vocabulary)}"
        )
    if absent:
        lines.append(
            f"{_count(len(absent), 'class')} without any clip, taking the shared ones unjudged: "
            f"{_named(absent, vocabulary)}"
        )
    never = [entry for entry, top in zip(classes, calibration.deciders.thresholds) if math.isinf(top)]
    if never:
        lines.append(
            f"{_count(len(never), 'class')} that no threshold makes that precise, so that they are never present: "
            f"{_named(never, vocabulary)}"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}es"


def _named(entries: Sequence[CalibratedClass], vocabulary: Vocabulary) -> str:
    names = [vocabulary.names[vocabulary.index(entry.mid)] for entry in entries[:SHOWN]]
    return ", ".join(names) + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")


def _figures(figures: Any, rows: dict[str, str], columns: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("")
    for title in columns.values():
        table.add_column(title, justify="right", header_style="dim")
    for row, label in rows.items():
        table.add_row(label, *(_cell(figures[column][row]) for column in columns))
    return table


def _classes(calibration: Calibration, vocabulary: Vocabulary) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("class", header_style="dim", overflow="fold")
    for title in ("clips", "threshold", "precision", "recall", "F1", "held out"):
        table.add_column(title, justify="right", header_style="dim")
    entries = sorted(zip(calibration.classes, calibration.deciders.thresholds), key=lambda pair: -pair[0].positives)
    for entry, threshold in entries[:SHOWN]:
        fitted, held_out = entry.figures.get("fitted", {}), entry.figures.get("held_out", {})
        values = (*(fitted.get(name) for name in ("precision", "recall", "f1")), held_out.get("f1"))
        limit = "never" if math.isinf(threshold) else f"{threshold:.3f}{'' if entry.own else ' shared'}"
        name = vocabulary.names[vocabulary.index(entry.mid)]
        table.add_row(escape(name), str(entry.positives), limit, *map(_cell, values))
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"
