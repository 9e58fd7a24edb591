"""Contents of the panels of a plot, and plots of unusual recordings and names."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
from matplotlib import image
from sounds import VOCABULARY

from psla_jax.audio.windows import Grid
from psla_jax.tagging.plot import figure as plot
from psla_jax.tagging.plot.figure import PlotError
from psla_jax.tagging.plot.heatmap import Heatmaps
from psla_jax.tagging.plot.spectrogram import Spectrogram
from psla_jax.tagging.result import Event, Tags
from psla_jax.vocabulary.vocabulary import Vocabulary

ODD = Vocabulary(("/o/a", "/o/b"), ("$\\frac_{1", "An odd and long name, " * 6))


def drawable(
    duration: float = 6.0, vocabulary: Vocabulary = VOCABULARY, attention: bool = True, **changes
) -> tuple[Tags, Heatmaps, Spectrogram]:
    """Returns the arguments of a plot, for a recording of `duration` seconds."""
    rng = np.random.default_rng(0)
    classes, steps, frames = len(vocabulary), max(1, round(duration / 0.32)), max(1, round(100 * duration) - 2)
    each, every = -(-steps // 2048), -(-frames // 2048)
    scores = rng.uniform(size=(-(-steps // each), classes)).astype(np.float32)
    values = {
        "clip": "some/street.wav", "duration": duration, "scores": np.linspace(0.9, 0.1, classes, dtype=np.float32),
        "events": (Event(0.64, 1.6, VOCABULARY.mids[0], "Low tone", 0.9),), "vocabulary": vocabulary,
        "selected": np.arange(classes),
    }  # fmt: skip
    heatmaps = Heatmaps(scores, 3 * scores if attention else None, each)
    decibels = rng.normal(-20, 10, (-(-frames // every), 128)).astype(np.float32)
    return Tags(**{**values, **changes}), heatmaps, Spectrogram(decibels, every)


def panels(figure) -> list:
    return figure.axes[::2]  # The other axes are colour bars.


def test_panels_hold_the_log_mel_the_scores_with_events_and_the_attention():
    tags, heatmaps, spectrogram = drawable(selected=np.array([0, 2, 3]))
    figure = plot.build_figure(tags, heatmaps, spectrogram, top=2)
    sound, scores, attention = panels(figure)
    assert "street.wav   6 s" in figure.get_suptitle()
    assert [panel.get_xlim() for panel in (sound, scores, attention)] == [(0, 6)] * 3
    np.testing.assert_array_equal(sound.collections[0].get_array(), spectrogram.decibels.T)
    names = [text.get_text() for text in scores.get_yticklabels()]
    assert names == ["Low tone  0.90", "Noise  0.37"]
    for panel, values in ((scores, heatmaps.scores), (attention, heatmaps.attention)):
        rows = [mesh.get_array() for mesh in panel.collections if hasattr(mesh, "get_coordinates")]
        np.testing.assert_array_equal(np.concatenate(rows), values[:, [0, 2]].T)
    mesh = scores.collections[0].get_coordinates()[0, :, 0]
    assert mesh[0] == 0
    assert mesh[-1] == 6
    np.testing.assert_allclose(mesh[1:-1], [Grid().frame_start(step) for step in range(1, len(mesh) - 1)])
    (bars,) = [c for c in scores.collections if not hasattr(c, "get_coordinates") and c.get_paths()]
    box = bars.get_paths()[0].get_extents()
    assert (box.x0, box.x1) == (0.64, 1.6)
    assert 0 < box.y0 < box.y1 < 1, "in the row of its class"


def test_frequencies_are_where_the_filters_are():
    tags, heatmaps, spectrogram = drawable()
    spectrogram.decibels[:] = -60
    spectrogram.decibels[:, 40] = 0
    mesh = panels(plot.build_figure(tags, heatmaps, spectrogram))[0].collections[0]
    low, high = mesh.get_coordinates()[40:42, 0, 1]
    centres = librosa.mel_frequencies(130, fmin=20, fmax=8000, htk=True)[1:-1]
    assert centres[39] < low < centres[40] < high < centres[41]


def test_models_without_attention_have_two_panels_and_say_where_times_come_from():
    figure = plot.build_figure(*drawable(attention=False, events_from="windows", notes=("It is odd.",)))
    sound, scores = panels(figure)
    assert "does not score frames" in scores.get_title(loc="left")
    assert sound.get_title(loc="left") == "It is odd."


@pytest.mark.parametrize(
    ("duration", "label"),
    [
        (0.025, "0.005"),
        (10.0, "4"),
        (180.0, "0:30"),
        (600.0, "10:00"),
        (3600.0, "0:50"),
        (1000.0, "10:00"),
        (90_000.0, "24:00"),
    ],
)
def test_any_length_has_times_that_can_be_read(duration, label):
    figure = plot.build_figure(*drawable(duration))
    assert panels(figure)[0].get_xlim() == (0, duration)
    ticks = [text.get_text() for text in panels(figure)[-1].get_xticklabels()]
    assert label in ticks
    assert 4 <= len(set(ticks)) == len(ticks) <= 12
    title = panels(figure)[1].get_title(loc="left")
    assert ("maximum of 2 frames per column" in title) == (duration == 1000.0)


@pytest.mark.filterwarnings("error")
def test_silence_is_dark_and_odd_names_are_whole(tmp_path):
    tags, heatmaps, spectrogram = drawable(3.0, ODD, clip="a/$odd_{\udcff}\n.wav")
    silent = Spectrogram(np.full_like(spectrogram.decibels, -69), 1)
    figure = plot.build_figure(tags, heatmaps, silent)
    sound, scores, _ = panels(figure)
    assert sound.collections[0].get_clim() == (-69, -49)
    labels = [text.get_text() for text in scores.get_yticklabels()]
    assert labels[0] == "$\\frac_{1  0.90"
    assert labels[1].replace("\n", " ").startswith("An odd and long name, " * 5)
    plot.draw(tmp_path / "a.png", tags, heatmaps, silent)
    pixels = image.imread(tmp_path / "a.png")
    height = figure.get_size_inches()[1] * plot.DPI
    assert pixels.shape == (int(height), 1440, 4)
    assert np.ptp(pixels[..., :3]) > 0.9


def test_one_class_and_many():
    one = drawable(1.0, Vocabulary(("/o/a",), ("Only",)), events=())
    assert len(panels(plot.build_figure(*one, top=5))[1].get_yticklabels()) == 1
    many = Vocabulary(tuple(f"/m/{i}" for i in range(60)), tuple(f"Class {i}" for i in range(60)))
    assert len(panels(plot.build_figure(*drawable(1.0, many), top=527))[1].get_yticklabels()) == plot.MAX_CLASSES


def test_threads_draw_identical_plots(tmp_path):
    arguments = drawable()
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: plot.draw(path, *arguments), paths))
    assert len({path.read_bytes() for path in paths}) == 1
    assert sorted(tmp_path.iterdir()) == paths


def test_a_plot_that_cannot_be_drawn_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(PlotError, match=r"a\.jpg: use a name that ends in \.png"):
        plot.draw(tmp_path / "a.jpg", *drawable())
    with pytest.raises(OSError, match="nowhere"):
        plot.draw(tmp_path / "nowhere" / "a.png", *drawable())
    with pytest.raises(PlotError, match="top is 0 of 4 classes: draw at least one"):
        plot.draw(tmp_path / "a.png", *drawable(), top=0)
    for library in ("matplotlib.figure", "librosa.display"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            with pytest.raises(PlotError, match=r"pip install 'psla_jax\[plot\]', or do not request plots\.$"):
                plot.require_plotting()
    assert list(tmp_path.iterdir()) == []
