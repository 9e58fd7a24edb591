"""Formats results as text: tables for the screen, CSV, JSON, RTTM and Audacity label tracks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psla_jax.runtime.terminal import one_line
from psla_jax.tagging.defaults import DEFAULTS
from psla_jax.tagging.result import PRESENT_MARK, Event, Tag, Tags, clock

COLUMNS = ("clip", "onset", "offset", "class", "mid", "score")
CALIBRATED_COLUMNS = ("probability", "present")
"""Additional columns for calibrated models; empty for events, to which the calibration does not apply."""
MAX_EVENTS_ON_SCREEN = 40
"""Maximum number of events per recording on the screen; files contain all events."""


@dataclass(frozen=True)
class OutputOptions:
    """Selection of the classes and events to write."""

    top: int = DEFAULTS.top
    """Maximum number of classes for a whole recording."""
    threshold: float | np.ndarray = DEFAULTS.threshold
    """Minimum score of a class, one for all classes or one per class ``(classes,)``."""
    times: Literal["auto", "always", "never"] = "auto"
    """When to write events instead of classes: ``auto`` for recordings longer than a window."""

    def has_events(self, tags: Tags) -> bool:
        """Whether the events of a recording are written."""
        return self.times == "always" or (self.times == "auto" and tags.long)

    def tags(self, tags: Tags) -> list[Tag]:
        """Returns the classes to write for a whole recording."""
        return tags.top(self.top, self.threshold)

    def events(self, tags: Tags) -> Sequence[Event]:
        """Returns the events to write: those of the recording, or its classes as events over its whole duration."""
        if self.has_events(tags):
            return tags.events
        end = round(tags.duration, 3)
        return [Event(0.0, end, t.mid, t.name, t.score, t.probability, t.present) for t in self.tags(tags)]


def csv_rows(tags: Tags, options: OutputOptions) -> str:
    """Formats rows of ``clip,onset,offset,class,mid,score``; calibrated models add ``,probability,present``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for e in options.events(tags):
        row = [tags.clip, f"{e.onset:.3f}", f"{e.offset:.3f}", e.name, e.mid, f"{e.score:.6f}"]
        if tags.calibration is not None:
            row += ["", ""] if e.probability is None else [f"{e.probability:.6f}", str(e.present).lower()]
        writer.writerow(row)
    return text.getvalue()


def json_line(tags: Tags, options: OutputOptions) -> str:
    """Formats a recording as one JSON object on one line: clip, duration, tags, events, notes."""
    record: dict[str, Any] = {"clip": tags.clip, "duration": round(tags.duration, 3), "tags": []}
    for tag in options.tags(tags):
        record["tags"].append({"class": tag.name, "mid": tag.mid, "score": round(tag.score, 6)})
        if tag.probability is not None:
            record["tags"][-1] |= {"probability": round(tag.probability, 6), "present": tag.present}
    if options.has_events(tags):
        record["events"] = [
            {"onset": e.onset, "offset": e.offset, "class": e.name, "mid": e.mid, "score": round(e.score, 6)}
            for e in tags.events
        ]
        record["events_from"] = tags.events_from
    if tags.notes:
        record["notes"] = list(tags.notes)
    return _json_text(record)


def failure_line(clip: str, error: Exception) -> str:
    """Formats a recording that could not be tagged as one JSON object on one line: clip, error."""
    return _json_text({"clip": clip, "error": str(error)})


def _json_text(record: dict[str, Any]) -> str:
    """Formats JSON on one line, with non-ASCII characters unescaped unless a file name is not valid UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False).encode().decode() + "\n"
    except UnicodeEncodeError:
        return json.dumps(record) + "\n"


def audacity_labels(tags: Tags, options: OutputOptions) -> str:
    """Formats an Audacity label track: tab-separated onset, offset and class."""
    return "".join(f"{e.onset:.6f}\t{e.offset:.6f}\t{e.name}\n" for e in options.events(tags))


def rttm_lines(tags: Tags, options: OutputOptions) -> str:
    """Formats RTTM lines with the class as the speaker and the score as the confidence; blanks become ``_``."""
    lines = []
    for e in options.events(tags):
        clip, name = ("_".join(text.split()) for text in (tags.clip, e.name))
        lines.append(f"SPEAKER {clip} 1 {e.onset:.3f} {e.offset - e.onset:.3f} <NA> <NA> {name} {e.score:.6f} <NA>\n")
    return "".join(lines)


def show(console: Console, tags: Tags, options: OutputOptions) -> None:
    """Prints the classes and events of a recording as tables."""
    console.print(f"[bold]{escape(one_line(tags.clip))}[/]  {clock(tags.duration)}", highlight=False)
    for note in tags.notes:
        console.print(f"  {one_line(note)}", style="yellow", markup=False, highlight=False)
    if top := options.tags(tags):
        console.print(_tag_table(top))
    else:
        (best,) = tags.top(1, -np.inf)
        if np.ndim(options.threshold):
            text = f"its threshold; the most probable is {best.name} with {best.probability:.3f}"
        else:
            text = f"{options.threshold:g}; the highest is {best.name} with {best.score:.3f}"
        console.print(f"  no class reaches {text}", markup=False)
    if options.has_events(tags):
        _show_events(console, tags)
    console.print()


def _tag_table(tags: Sequence[Tag]) -> Table:
    """Returns a table of scores and names; with a calibrated model, of marks, probabilities, names and scores."""
    calibrated = tags[0].probability is not None
    table = Table(box=None, show_header=calibrated, padding=(0, 0, 0, 2))
    table.add_column("probability" if calibrated else "", justify="right", header_style="dim")
    table.add_column(no_wrap=True)
    table.add_column("class", overflow="fold", header_style="dim")
    if calibrated:
        table.add_column("score", justify="right", header_style="dim", style="dim")
    for tag in tags:
        if tag.probability is None:
            table.add_row(f"{tag.score:.3f}", _bar(tag.score), escape(tag.name))
        else:
            marked = f"{PRESENT_MARK if tag.present else ''} {tag.probability:.3f}"
            table.add_row(marked, _bar(tag.probability), escape(tag.name), f"{tag.score:.3f}")
    return table


def _show_events(console: Console, tags: Tags) -> None:
    source = "" if tags.events_from == "head" else " (from windows alone: this model does not score output frames)"
    if not tags.events:
        console.print(f"  no events{source}", markup=False)
        return
    table = Table(box=None, padding=(0, 0, 0, 2), title=f"  events{source}", title_justify="left")
    for name in ("from", "to", "score"):
        table.add_column(name, justify="right", header_style="dim")
    table.add_column("class", header_style="dim", overflow="fold")
    for e in tags.events[:MAX_EVENTS_ON_SCREEN]:
        table.add_row(clock(e.onset), clock(e.offset), f"{e.score:.3f}", escape(e.name))
    console.print(table)
    if (more := len(tags.events) - MAX_EVENTS_ON_SCREEN) > 0:
        console.print(f"  ... and {more} more: --csv FILE writes all", markup=False, highlight=False)


def _bar(score: float, width: int = 12) -> str:
    """Draws a score in [0, 1] as a horizontal bar of block characters."""
    eighths = round(min(max(score, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
