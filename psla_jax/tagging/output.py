"""Results as text: for people, and in the formats that other programs read."""

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

from psla_jax.tagging.result import PRESENT, Event, Tag, Tags, clock
from psla_jax.terminal import printable

COLUMNS = ("clip", "onset", "offset", "class", "mid", "score")
CALIBRATED = ("probability", "present")
"""Columns more where the model is calibrated; empty for events, whose steps it does not judge."""
SHOWN_EVENTS = 40
"""Events of one recording on the screen; the files have all."""


@dataclass(frozen=True)
class Shown:
    """How much of a result is written."""

    top: int = 5
    """Classes of the whole recording, the highest first."""
    threshold: float | np.ndarray = 0.2
    """Classes below it are left out; one for all, or each its own ``(classes,)``."""
    times: Literal["auto", "always", "never"] = "auto"
    """Events, or the whole recording's classes: ``auto`` has events where it is longer than a window."""

    def has_events(self, tags: Tags) -> bool:
        """Whether a recording is told by its events."""
        return self.times == "always" or (self.times == "auto" and tags.long)

    def events(self, tags: Tags) -> Sequence[Event]:
        """What is written of a recording: its events, or its classes as events that last all the time."""
        if self.has_events(tags):
            return tags.events
        found = tags.top(self.top, self.threshold)
        end = round(tags.duration, 3)
        return [Event(0.0, end, t.mid, t.name, t.score, t.probability, t.present) for t in found]


def csv_rows(tags: Tags, shown: Shown) -> str:
    """Lines of ``clip,onset,offset,class,mid,score``, and ``,probability,present`` where the model is calibrated."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for e in shown.events(tags):
        row = (tags.clip, f"{e.onset:.3f}", f"{e.offset:.3f}", e.name, e.mid, f"{e.score:.6f}")
        writer.writerow(row if tags.calibration is None else (*row, *_calibrated(e)))
    return text.getvalue()


def _calibrated(event: Event) -> tuple[str, str]:
    if event.probability is None:
        return "", ""
    return f"{event.probability:.6f}", str(event.present).lower()


def json_line(tags: Tags, shown: Shown) -> str:
    """One object on one line: clip, duration, tags, events, notes."""
    tagged = tags.top(shown.top, shown.threshold)
    content: dict[str, Any] = {
        "clip": tags.clip,
        "duration": round(tags.duration, 3),
        "tags": [_object(tag) for tag in tagged],
    }
    if shown.has_events(tags):
        content["events"] = [
            {"onset": e.onset, "offset": e.offset, "class": e.name, "mid": e.mid, "score": round(e.score, 6)}
            for e in tags.events
        ]
        content["events_from"] = tags.events_from
    if tags.notes:
        content["notes"] = list(tags.notes)
    return as_line(content)


def failure_line(clip: str, error: Exception) -> str:
    """The same of a recording that could not be tagged: clip, error."""
    return as_line({"clip": clip, "error": str(error)})


def as_line(content: dict[str, Any]) -> str:
    """JSON on one line, readable where it can be: a file name that is no UTF-8 would make it none either."""
    line = json.dumps(content, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(content) + "\n"
    return line


def _object(tag: Tag) -> dict[str, Any]:
    found: dict[str, Any] = {"class": tag.name, "mid": tag.mid, "score": round(tag.score, 6)}
    if tag.probability is not None:
        found |= {"probability": round(tag.probability, 6), "present": tag.present}
    return found


def audacity_labels(tags: Tags, shown: Shown) -> str:
    """A label track: onset, offset and class between tabs."""
    return "".join(f"{e.onset:.6f}\t{e.offset:.6f}\t{e.name}\n" for e in shown.events(tags))


def rttm_lines(tags: Tags, shown: Shown) -> str:
    """The ten fields of RTTM, with the class for the speaker and the score for the confidence; blanks become ``_``."""
    clip = _one_word(tags.clip)
    return "".join(
        f"SPEAKER {clip} 1 {e.onset:.3f} {e.offset - e.onset:.3f} <NA> <NA> {_one_word(e.name)} {e.score:.6f} <NA>\n"
        for e in shown.events(tags)
    )


def _one_word(text: str) -> str:
    return "_".join(text.split())


def show(console: Console, tags: Tags, shown: Shown) -> None:
    """The table of one recording."""
    console.print(f"[bold]{escape(printable(tags.clip))}[/]  {clock(tags.duration)}", highlight=False)
    for note in tags.notes:
        console.print(f"  {printable(note)}", style="yellow", markup=False, highlight=False)
    found = tags.top(shown.top, shown.threshold)
    if found:
        console.print(_table(found))
    else:
        console.print(f"  {_nothing(tags, shown)}", markup=False)
    if shown.has_events(tags):
        _show_events(console, tags)
    console.print()


def _table(found: Sequence[Tag]) -> Table:
    """Score and name of each; or its mark, its probability, its name and its score."""
    calibrated = found[0].probability is not None
    table = Table(box=None, show_header=calibrated, padding=(0, 0, 0, 2))
    if calibrated:
        table.add_column("probability", justify="right", header_style="dim")
    else:
        table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column("class", overflow="fold", header_style="dim")
    if calibrated:
        table.add_column("score", justify="right", header_style="dim", style="dim")
    for tag in found:
        if tag.probability is None:
            table.add_row(f"{tag.score:.3f}", _bar(tag.score), escape(tag.name))
        else:
            likely = f"{PRESENT if tag.present else ''} {tag.probability:.3f}"
            table.add_row(likely, _bar(tag.probability), escape(tag.name), f"{tag.score:.3f}")
    return table


def _nothing(tags: Tags, shown: Shown) -> str:
    """Why no class is shown."""
    (best,) = tags.top(1, -np.inf)
    if np.ndim(shown.threshold):
        return f"no class reaches its threshold; the most probable is {best.name} with {best.probability:.3f}"
    return f"no class reaches {shown.threshold:g}; the highest is {best.name} with {best.score:.3f}"


def _show_events(console: Console, tags: Tags) -> None:
    source = "" if tags.events_from == "head" else " (from windows alone: this model does not score steps)"
    if not tags.events:
        console.print(f"  no events{source}", markup=False)
        return
    table = Table(box=None, padding=(0, 0, 0, 2), title=f"  events{source}", title_justify="left")
    for name in ("from", "to", "score"):
        table.add_column(name, justify="right", header_style="dim")
    table.add_column("class", header_style="dim", overflow="fold")
    for e in tags.events[:SHOWN_EVENTS]:
        table.add_row(clock(e.onset), clock(e.offset), f"{e.score:.3f}", escape(e.name))
    console.print(table)
    if len(tags.events) > SHOWN_EVENTS:
        more = len(tags.events) - SHOWN_EVENTS
        console.print(f"  ... and {more} more: --csv FILE writes all", markup=False, highlight=False)


def _bar(score: float, width: int = 12) -> str:
    eighths = round(min(max(score, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
