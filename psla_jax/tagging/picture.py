"""A recording at a glance: log-mel, scores of the top classes over time with their events, and the head's attention."""

from __future__ import annotations

import io
import math
import os
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax import files
from psla_jax.tagging.lettering import lettered
from psla_jax.tagging.result import SHOWN, Event, Tag, Tags, clock
from psla_jax.tagging.spectrum import Spectrum
from psla_jax.tagging.strip import Strips
from psla_jax.tagging.windows import STEP_SECONDS, beginning_of

MOST_ROWS = 40
"""Classes in a picture; more would not be read."""
WIDTH, DOTS = 12.0, 120
"""Inches, and pixels in each."""
NAME_WIDTH = 32
"""Letters of a class's name in a line."""
LOUDNESS = 80.0
"""Decibels from the loudest down to black."""
FREQUENCIES = (125, 250, 500, 1000, 2000, 4000, 8000)
TICKS = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120)),
)
"""Seconds from one tick of the time axis to the next."""
EVENT_COLOUR = "#d55e00"
_DRAWING = threading.Lock()  # Figures are apart, but matplotlib's fonts and caches are not made for threads.


class PictureError(ValueError):
    """A picture that cannot be drawn; the message says why."""


def require(place: str | os.PathLike[str] = "a.png") -> None:
    """Raises PictureError if what draws pictures is not installed, or the place of one does not end in .png."""
    if Path(place).suffix.lower() != ".png":
        raise PictureError(f"a picture cannot be written to {place}: use a name that ends in .png.")
    try:
        import librosa.display  # noqa: F401 - both are asked for alone
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PictureError(
            f"pictures need matplotlib and librosa ({error}): pip install 'psla_jax[plot]', or do without pictures."
        ) from error


def draw(place: str | os.PathLike[str], tags: Tags, strips: Strips, spectrum: Spectrum, *, top: int = SHOWN) -> None:
    """Writes a PNG; the file appears whole or not at all.

    Args:
        place: where to; what is there is replaced.
        tags: of the recording.
        strips: its scores and attention over time.
        spectrum: its log-mel.
        top: how many classes have a row, 40 at most; those with the highest scores.

    Raises:
        PictureError: matplotlib or librosa is not installed, the place does not end in .png, or there is no class.
        OSError: the file cannot be written.
    """
    require(place)
    drawn = io.BytesIO()
    with _DRAWING:
        figure(tags, strips, spectrum, top=top).savefig(drawn, format="png", dpi=DOTS)
    with files.whole(place) as aside:
        Path(aside).write_bytes(drawn.getvalue())


def figure(tags: Tags, strips: Strips, spectrum: Spectrum, *, top: int = SHOWN) -> Any:
    """The same as a matplotlib Figure: panels below each other with one time axis, and their colour scales beside."""
    from matplotlib.figure import Figure

    rows = _Rows.of(tags, top)
    heights = [2.6, rows.height] if strips.attention is None else [2.6, rows.height, rows.height]
    whole = Figure(figsize=(WIDTH, sum(heights) + 0.5 + 0.35 * len(heights)), layout="constrained")
    axes = whole.subplots(len(heights), 2, width_ratios=(70, 1), height_ratios=heights)
    panels, scales = axes[:, 0], axes[:, 1]
    for panel in panels[1:]:
        panel.sharex(panels[0])
    edges = _edges(len(strips.scores), strips.steps * STEP_SECONDS, beginning_of(1) - STEP_SECONDS, tags.duration)
    whole.colorbar(_sound(panels[0], tags, spectrum), cax=scales[0], label="dB")
    mesh = rows.draw(panels[1], edges, strips.scores, cmap="viridis", vmin=0.0, vmax=1.0)
    whole.colorbar(mesh, cax=scales[1], label="score")
    rows.draw_events(panels[1], tags.events)
    source = "of steps" if tags.events_from == "head" else "of windows, as this model does not score steps"
    reduced = f", the highest of {strips.steps} in each column" if strips.steps > 1 else ""
    _say(panels[1], f"score {source}{reduced}; the lines are events")
    if strips.attention is not None:
        limit = max(2.0, float(strips.attention[:, rows.columns].max()))
        mesh = rows.draw(panels[2], edges, strips.attention, cmap="cividis", vmin=0.0, vmax=limit)
        whole.colorbar(mesh, cax=scales[2], label="attention")
        _say(panels[2], f"attention: what steps weigh in the score, 1 where all weigh the same; mean of heads{reduced}")
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    _time_axis(panels[-1], tags.duration)
    (name, *notes), lettering = lettered([os.path.basename(tags.clip), *tags.notes])
    name = name if len(name) <= 100 else f"{name[:60]} ... {name[-35:]}"
    length = f"{tags.duration:.3g} s" if tags.duration < 60 else clock(tags.duration)
    whole.suptitle(f"{name}   {length}", x=0.01, horizontalalignment="left", **lettering)
    if notes:
        _say(panels[0], "\n".join(textwrap.fill(note, 150) for note in notes), **lettering)
    return whole


@dataclass(frozen=True)
class _Rows:
    """The classes of a picture, each with a row in every panel of classes."""

    tags: Sequence[Tag]
    columns: Sequence[int]
    """Where they are in the vocabulary."""
    labels: Sequence[str]
    lettering: dict[str, Any]

    @classmethod
    def of(cls, tags: Tags, top: int) -> _Rows:
        """Those with the highest scores."""
        found = tags.top(min(max(top, 0), MOST_ROWS))
        if not found:
            raise PictureError(f"top is {top} of {len(tags.selected)} classes: draw at least one.")
        names, lettering = lettered([tag.name for tag in found])
        labels = [f"{textwrap.fill(name, NAME_WIDTH)}  {tag.score:.2f}" for name, tag in zip(names, found)]
        return cls(found, [tags.vocabulary.index(tag.mid) for tag in found], labels, lettering)

    @property
    def height(self) -> float:
        """Inches of a panel with all rows."""
        lines = 1 + max(label.count("\n") for label in self.labels)
        return (0.16 + 0.17 * lines) * len(self.labels)

    def draw(self, panel: Any, edges: np.ndarray, values: np.ndarray, **colours: Any) -> Any:
        """A strip of colours for each; `values` are ``(columns, classes)``."""
        for row, column in enumerate(self.columns):
            mesh = panel.pcolormesh(edges, (row + 0.08, row + 0.74), values[None, :, column], **colours)
        panel.set_ylim(len(self.labels), 0)
        panel.set_yticks(np.arange(len(self.labels)) + 0.41, self.labels, **self.lettering)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        return mesh

    def draw_events(self, panel: Any, events: Sequence[Event]) -> None:
        """Lines below the strips; their ends stand out a little, so that no event is too short to be seen."""
        for row, tag in enumerate(self.tags):
            spans = [(event.onset, event.offset - event.onset) for event in events if event.mid == tag.mid]
            panel.broken_barh(spans, (row + 0.8, 0.12), color=EVENT_COLOUR, linewidth=0.8)


def _sound(panel: Any, tags: Tags, spectrum: Spectrum) -> Any:
    """The log-mel."""
    import librosa.display

    loudest = float(spectrum.decibels.max())
    floor = max(float(spectrum.decibels.min()), loudest - LOUDNESS)
    mesh = librosa.display.specshow(
        spectrum.decibels.T,
        x_coords=_edges(len(spectrum.decibels), spectrum.frames * 0.01, 0.0075, tags.duration),
        y_coords=_mel_edges(spectrum.decibels.shape[1]),
        y_axis="mel",
        cmap="magma",
        vmin=floor,
        vmax=max(loudest, floor + 20),  # Silence is black, too.
        ax=panel,
    )
    panel.set(xlabel="", ylabel="Hz")
    panel.set_yticks(FREQUENCIES, [str(hertz) for hertz in FREQUENCIES])
    panel.minorticks_off()
    return mesh


def _time_axis(panel: Any, duration: float) -> None:
    """Ticks where people look for them, ten or fewer after the first."""
    step = next((step for step in TICKS if duration <= 10 * step), 3600 * math.ceil(duration / 36_000))
    times = [round(i * step, 6) for i in range(int(duration / step) + 1)]
    if duration < 60:
        labels, unit = [f"{t:g}" for t in times], "seconds"
    elif duration < 3600:
        labels, unit = [f"{t // 60:.0f}:{t % 60:02.0f}" for t in times], "minutes:seconds"
    else:
        labels, unit = [f"{t // 3600:.0f}:{t // 60 % 60:02.0f}" for t in times], "hours:minutes"
    panel.set_xticks(times, labels)
    panel.set(xlim=(0, duration), xlabel=unit)


def _say(panel: Any, text: str, **lettering: Any) -> None:
    """What a panel shows, above it."""
    panel.set_title(text, loc="left", fontsize="small", color="dimgray", **lettering)


def _edges(columns: int, width: float, ahead: float, end: float) -> np.ndarray:
    """Where columns begin and the last one ends; `ahead` is where the first would begin if it did not at 0."""
    edges = ahead + width * np.arange(columns + 1)
    edges[0], edges[-1] = 0.0, end
    return edges


def _mel_edges(bands: int) -> np.ndarray:
    """The edges of mel bands in Hz: halfway between the centres of Kaldi's filters."""
    low, high = (1127 * np.log1p(hertz / 700) for hertz in (20.0, 8000.0))
    width = (high - low) / (bands + 1)
    return 700 * np.expm1((low + width * (np.arange(bands + 1) + 0.5)) / 1127)
