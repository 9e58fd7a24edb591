"""Plot of a tagged recording: log-mel spectrogram, scores and events of the top classes over time, and attention."""

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

from psla_jax.audio.windows import Grid
from psla_jax.config import FrontendConfig
from psla_jax.runtime import files
from psla_jax.tagging.defaults import DEFAULTS
from psla_jax.tagging.plot.fonts import drawable
from psla_jax.tagging.plot.heatmap import Heatmaps
from psla_jax.tagging.plot.spectrogram import Spectrogram
from psla_jax.tagging.result import Event, Tag, Tags, clock

MAX_CLASSES = 40
"""Maximum number of classes in a plot that is still legible."""
WIDTH_INCHES, DPI = 12.0, 120
LABEL_WIDTH = 32
"""Maximum number of characters in a line of a class label."""
DYNAMIC_RANGE = 80.0
"""Range of the spectrogram's colour scale, in decibels below the maximum."""
FREQUENCIES = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
"""Ticks of the frequency axis, in Hz."""
TICK_INTERVALS = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120)),
)
"""Possible intervals between ticks of the time axis, in seconds."""
EVENT_COLOUR = "#d55e00"
_DRAWING = threading.Lock()  # matplotlib's font caches are not thread-safe.


class PlotError(ValueError):
    """A plot that cannot be drawn; the message gives the reason."""


def require_plotting(path: str | os.PathLike[str] = "a.png") -> None:
    """Raises PlotError if matplotlib or librosa is not installed, or the path does not end in .png."""
    if Path(path).suffix.lower() != ".png":
        raise PlotError(f"a plot cannot be written to {path}: use a name that ends in .png.")
    try:
        import librosa.display  # noqa: F401 - imported only to check that it is installed
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PlotError(
            f"plots need matplotlib and librosa ({error}): pip install 'psla_jax[plot]', or do not request plots."
        ) from error


def draw(
    path: str | os.PathLike[str], tags: Tags, heatmaps: Heatmaps, spectrogram: Spectrogram, *, top: int = DEFAULTS.top
) -> None:
    """Draws the `top` classes with the highest scores, at most 40, into a PNG file; replaces the file atomically.

    Raises:
        PlotError: matplotlib or librosa is not installed, the path does not end in .png, or there is no class to draw.
        OSError: the file cannot be written.
    """
    require_plotting(path)
    png = io.BytesIO()
    with _DRAWING:
        build_figure(tags, heatmaps, spectrogram, top=top).savefig(png, format="png", dpi=DPI)
    with files.atomic_path(path) as temporary:
        Path(temporary).write_bytes(png.getvalue())


def build_figure(tags: Tags, heatmaps: Heatmaps, spectrogram: Spectrogram, *, top: int = DEFAULTS.top) -> Any:
    """Returns a matplotlib Figure: panels with a common time axis and colour bars. Arguments as for :func:`draw`."""
    from matplotlib.figure import Figure

    rows = _ClassRows.from_tags(tags, top)
    heights = [2.6, rows.height] if heatmaps.attention is None else [2.6, rows.height, rows.height]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.5 + 0.35 * len(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 2, width_ratios=(70, 1), height_ratios=heights)
    panels, colour_bars = axes.T
    for panel in panels[1:]:
        panel.sharex(panels[0])
    figure.colorbar(_draw_spectrogram(panels[0], tags, spectrogram), cax=colour_bars[0], label="dB")
    grid, frames = Grid.of(spectrogram.frontend), heatmaps.frames_per_column
    start, each = grid.frame_start(1) - grid.output_seconds, f"per frame of {grid.output_seconds:.3g} s"
    edges = _time_edges(len(heatmaps.scores), frames * grid.output_seconds, start, tags.duration)
    mesh = rows.draw(panels[1], edges, heatmaps.scores, cmap="viridis", vmin=0.0, vmax=1.0)
    figure.colorbar(mesh, cax=colour_bars[1], label="score")
    rows.draw_events(panels[1], tags.events)
    source = each if tags.events_from == "head" else "per window, as this model does not score frames"
    reduced = f", maximum of {frames} frames per column" if frames > 1 else ""
    _set_title(panels[1], f"score {source}{reduced}; lines mark events")
    if heatmaps.attention is not None:
        limit = max(2.0, float(heatmaps.attention[:, rows.columns].max()))
        mesh = rows.draw(panels[2], edges, heatmaps.attention, cmap="cividis", vmin=0.0, vmax=limit)
        figure.colorbar(mesh, cax=colour_bars[2], label="attention")
        _set_title(panels[2], f"attention weight {each}, mean over heads; 1 is uniform{reduced}")
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    _set_time_axis(panels[-1], tags.duration)
    (name, *notes), font = drawable([os.path.basename(tags.clip), *tags.notes])
    name = name if len(name) <= 100 else f"{name[:60]} ... {name[-35:]}"
    length = f"{tags.duration:.3g} s" if tags.duration < 60 else clock(tags.duration)
    figure.suptitle(f"{name}   {length}", x=0.01, horizontalalignment="left", **font)
    if notes:
        _set_title(panels[0], "\n".join(textwrap.fill(note, 150) for note in notes), **font)
    return figure


@dataclass(frozen=True)
class _ClassRows:
    """The classes of a plot, each with one row in every class panel."""

    tags: Sequence[Tag]
    columns: Sequence[int]
    """Indices of the classes in the vocabulary."""
    labels: Sequence[str]
    font: dict[str, Any]

    @classmethod
    def from_tags(cls, tags: Tags, top: int) -> _ClassRows:
        """Selects the classes with the highest scores."""
        selected = tags.top(min(max(top, 0), MAX_CLASSES))
        if not selected:
            raise PlotError(f"top is {top} of {len(tags.selected)} classes: draw at least one.")
        names, font = drawable([tag.name for tag in selected])
        labels = [f"{textwrap.fill(name, LABEL_WIDTH)}  {tag.score:.2f}" for name, tag in zip(names, selected)]
        return cls(selected, [tags.vocabulary.index(tag.mid) for tag in selected], labels, font)

    @property
    def height(self) -> float:
        """Height of a panel in inches."""
        lines = 1 + max(label.count("\n") for label in self.labels)
        return (0.16 + 0.17 * lines) * len(self.labels)

    def draw(self, panel: Any, edges: np.ndarray, values: np.ndarray, **colours: Any) -> Any:
        """Draws one heat map row per class; `values` are ``(columns, classes)``."""
        for row, column in enumerate(self.columns):
            mesh = panel.pcolormesh(edges, (row + 0.08, row + 0.74), values[None, :, column], **colours)
        panel.set_ylim(len(self.labels), 0)
        panel.set_yticks(np.arange(len(self.labels)) + 0.41, self.labels, **self.font)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        return mesh

    def draw_events(self, panel: Any, events: Sequence[Event]) -> None:
        """Draws events as lines below the rows; the line width at both ends makes very short events visible."""
        for row, tag in enumerate(self.tags):
            spans = [(event.onset, event.offset - event.onset) for event in events if event.mid == tag.mid]
            panel.broken_barh(spans, (row + 0.8, 0.12), color=EVENT_COLOUR, linewidth=0.8)


def _draw_spectrogram(panel: Any, tags: Tags, spectrogram: Spectrogram) -> Any:
    import librosa.display

    decibels, frontend = spectrogram.decibels, spectrogram.frontend
    hop = frontend.hop_samples / frontend.sample_rate
    start = (frontend.window_samples / frontend.sample_rate - hop) / 2
    maximum = float(decibels.max())
    minimum = max(float(decibels.min()), maximum - DYNAMIC_RANGE)
    mesh = librosa.display.specshow(
        decibels.T,
        x_coords=_time_edges(len(decibels), spectrogram.frames_per_column * hop, start, tags.duration),
        y_coords=_mel_edges(frontend),
        y_axis="mel",
        cmap="magma",
        vmin=minimum,
        vmax=max(maximum, minimum + 20),  # Draws silence black.
        ax=panel,
    )
    panel.set(xlabel="", ylabel="Hz")
    ticks = [hertz for hertz in FREQUENCIES if hertz <= frontend.top_hz]
    panel.set_yticks(ticks, [str(hertz) for hertz in ticks])
    panel.minorticks_off()
    return mesh


def _set_time_axis(panel: Any, duration: float) -> None:
    """Sets round ticks, at most eleven, with labels in seconds, minutes or hours."""
    interval = next((i for i in TICK_INTERVALS if duration <= 10 * i), 3600 * math.ceil(duration / 36_000))
    times = [round(i * interval, 6) for i in range(int(duration / interval) + 1)]
    if duration < 60:
        labels, unit = [f"{t:g}" for t in times], "seconds"
    elif duration < 3600:
        labels, unit = [f"{t // 60:.0f}:{t % 60:02.0f}" for t in times], "minutes:seconds"
    else:
        labels, unit = [f"{t // 3600:.0f}:{t // 60 % 60:02.0f}" for t in times], "hours:minutes"
    panel.set_xticks(times, labels)
    panel.set(xlim=(0, duration), xlabel=unit)


def _set_title(panel: Any, text: str, **font: Any) -> None:
    panel.set_title(text, loc="left", fontsize="small", color="dimgray", **font)


def _time_edges(columns: int, width: float, start: float, end: float) -> np.ndarray:
    """Returns the edges of columns of equal width in seconds, from `start` on; the outer edges become 0 and `end`."""
    edges = start + width * np.arange(columns + 1)
    edges[0], edges[-1] = 0.0, end
    return edges


def _mel_edges(frontend: FrontendConfig) -> np.ndarray:
    """Returns the edges of mel bands in Hz: halfway, in mel, between the centre frequencies of Kaldi's filters."""
    low, high = (1127 * np.log1p(hertz / 700) for hertz in (frontend.low_hz, frontend.top_hz))
    bands = frontend.num_mels
    width = (high - low) / (bands + 1)
    return 700 * np.expm1((low + width * (np.arange(bands + 1) + 0.5)) / 1127)
