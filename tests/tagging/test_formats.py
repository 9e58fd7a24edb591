"""Output formats, read back by independent parsers; printed tables; result objects."""

from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console
from sounds import VOCABULARY

from psla_jax.tagging import formats
from psla_jax.tagging.formats import OutputOptions
from psla_jax.tagging.result import Embeddings, Event, ResultError, Tags, clock

OPTIONS = OutputOptions()
EVENTS = (
    Event(0.0, 1.92, "/t/low", "Low tone", 0.75),
    Event(3600.5, 3661.25, "/t/noise", "Noise", 1.0625),
)


def tags(**changes) -> Tags:
    values = {
        "clip": "a, b.wav", "duration": 3700.0, "scores": np.array([0.75, 0.125, 1.0625, 0.25], np.float32),
        "events": EVENTS, "vocabulary": VOCABULARY, "selected": np.arange(4), "long": True, "notes": ("It is odd.",),
    }  # fmt: skip
    return Tags(**{**values, **changes})


def test_csv():
    rows = list(csv.reader(io.StringIO(",".join(formats.COLUMNS) + "\n" + formats.csv_rows(tags(), OPTIONS))))
    assert rows[0] == ["clip", "onset", "offset", "class", "mid", "score"]
    assert rows[1:] == [
        ["a, b.wav", "0.000", "1.920", "Low tone", "/t/low", "0.750000"],
        ["a, b.wav", "3600.500", "3661.250", "Noise", "/t/noise", "1.062500"],
    ]


def test_classes_of_a_short_recording_are_events_over_its_whole_duration():
    rows = list(csv.reader(io.StringIO(formats.csv_rows(tags(long=False), OutputOptions(top=3, threshold=0.2)))))
    assert [(row[1], row[2], row[3]) for row in rows] == [
        ("0.000", "3700.000", name) for name in ("Noise", "Low tone", "Never")
    ]
    assert formats.csv_rows(tags(long=False), OutputOptions(times="always")) == formats.csv_rows(tags(), OPTIONS)
    assert formats.csv_rows(tags(), OutputOptions(times="never")) == formats.csv_rows(tags(long=False), OPTIONS)


def test_json():
    line = formats.json_line(tags(), OutputOptions(top=2))
    assert line.count("\n") == 1
    record = json.loads(line)
    assert (record["clip"], record["duration"], record["notes"]) == ("a, b.wav", 3700.0, ["It is odd."])
    assert record["tags"] == [
        {"class": "Noise", "mid": "/t/noise", "score": 1.0625}, {"class": "Low tone", "mid": "/t/low", "score": 0.75},
    ]  # fmt: skip
    assert record["events"][1] == {
        "onset": 3600.5, "offset": 3661.25, "class": "Noise", "mid": "/t/noise", "score": 1.0625,
    }  # fmt: skip
    assert "events" not in json.loads(formats.json_line(tags(long=False), OPTIONS))


def test_json_is_valid_for_any_file_name():
    for clip in ("鳥.wav", "byte \udcff.wav"):
        for line in (formats.json_line(tags(clip=clip), OPTIONS), formats.failure_line(clip, ValueError("bad"))):
            assert json.loads(line.encode())["clip"] == clip
            assert (clip in line) == ("鳥" in clip)


def test_label_track_and_rttm():
    assert formats.audacity_labels(tags(), OPTIONS).splitlines()[0].split("\t") == ["0.000000", "1.920000", "Low tone"]
    first = formats.rttm_lines(tags(), OPTIONS).splitlines()[0].split(" ")
    assert first == ["SPEAKER", "a,_b.wav", "1", "0.000", "1.920", "<NA>", "<NA>", "Low_tone", "0.750000", "<NA>"]


def printed(result: Tags, **options) -> str:
    console = Console(file=io.StringIO(), width=100)
    formats.show(console, result, OutputOptions(**options))
    return console.file.getvalue()


def test_the_table():
    lines = printed(tags(), top=2).splitlines()
    assert lines[0].split() == ["a,", "b.wav", "1:01:40.0"]
    assert "It is odd." in lines[1]
    assert lines[2].split() == ["1.062", "█" * 12, "Noise"]
    assert lines[3].split() == ["0.750", "█" * 9, "Low", "tone"]
    assert [line.split() for line in lines[4:8]] == [
        ["events"], ["from", "to", "score", "class"], ["0:00.0", "0:01.9", "0.750", "Low", "tone"],
        ["1:00:00.5", "1:01:01.2", "1.062", "Noise"],
    ]  # fmt: skip
    assert "windows alone" in printed(tags(events_from="windows"))
    assert "no class reaches 2; the highest is Noise with 1.062" in printed(tags(), threshold=2.0)
    assert "[/t/x]" in printed(tags(clip="[/t/x].wav")), "names are not parsed as markup"
    many = printed(tags(events=EVENTS * 30))
    assert "... and 20 more: --csv FILE writes all" in many


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (754.32, "12:34.3"), (36_000, "10:00:00.0")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_results_are_queried_by_rank_and_by_name():
    result = tags(selected=np.array([1, 3]))
    assert [tag.name for tag in result.top()] == ["Never", "High tone"]
    assert result["Noise"] == result["/t/noise"] == 1.0625
    with pytest.raises(ResultError, match="there is no class 'Cow'"):
        result["Cow"]
    assert str(tags()).splitlines()[:2] == ["a, b.wav (1:01:40.0)", "  1.062  Noise"]


def test_dataframes(monkeypatch):
    events = tags().to_dataframe()
    assert list(events.columns) == list(formats.COLUMNS)
    assert events.values.tolist() == [["a, b.wav", e.onset, e.offset, e.name, e.mid, e.score] for e in EVENTS]
    classes = tags(selected=np.array([1, 3])).to_dataframe("tags")
    assert list(classes.columns) == ["clip", "class", "mid", "score"]
    assert classes.values.tolist() == [
        ["a, b.wav", "Never", "/t/never", 0.25],
        ["a, b.wav", "High tone", "/t/high", 0.125],
    ]
    assert list(tags(events=()).to_dataframe().columns) == list(formats.COLUMNS)
    with pytest.raises(ResultError, match="what is 'scores': choose events or tags"):
        tags().to_dataframe("scores")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ResultError, match="pip install pandas"):
        tags().to_dataframe()


def test_embeddings_are_saved(tmp_path):
    embeddings = Embeddings(np.arange(3, dtype=np.float32), np.ones((4, 3), np.float32))
    embeddings.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["clip"], [0, 1, 2])
        assert file["frames"].shape == (4, 3)
        np.testing.assert_allclose(file["times"], [0, 0.1725, 0.4925, 0.8125])
    embeddings.save(tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [0, 1, 2])
    with pytest.raises(ResultError, match=r"a\.txt: use a name that ends in \.npz"):
        embeddings.save(tmp_path / "a.txt")
    assert len(list(tmp_path.iterdir())) == 2


def test_control_characters_are_not_printed():
    screen = io.StringIO()
    result = tags(clip="\x1b[2J\x1b]0;owned\x07[red]a\rb.wav", notes=("It is \x1b[8m odd.",))
    formats.show(Console(file=screen, width=200), result, OPTIONS)
    assert r"\x1b[2J\x1b]0;owned\x07[red]a\rb.wav" in screen.getvalue()
    assert r"It is \x1b[8m odd." in screen.getvalue()
    assert not {"\x1b", "\x07", "\r"} & set(screen.getvalue())
