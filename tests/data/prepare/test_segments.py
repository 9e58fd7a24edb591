"""Tables and label files of segments of recordings, from the columns to the datafiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from servers import one_sentence

from psla_jax.audio import segments
from psla_jax.audio.segments import WHOLE
from psla_jax.cli import main
from psla_jax.data.datafile import Datafile
from psla_jax.data.prepare import collection, folder, table
from psla_jax.data.prepare.collection import Collection, CollectionError
from psla_jax.data.prepare.table import Columns
from psla_jax.vocabulary.vocabulary import Vocabulary

RATE = 8000
HERTZ = {"dog": 300, "cat": 1000, "crow": 2500}


def tones(path: Path, *classes: str, seconds: float = 1.0) -> None:
    """Writes a recording with a tone of each class, one after the other."""
    time = np.arange(round(seconds * RATE)) / RATE
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([np.sin(2 * np.pi * HERTZ[name] * time) / 2 for name in classes]), RATE)


@pytest.fixture
def home(tmp_path) -> Path:
    """Two recordings of three seconds."""
    tones(tmp_path / "audio" / "a.wav", "dog", "cat", "crow")
    tones(tmp_path / "audio" / "deep" / "b.wav", "cat", "dog", "dog")
    return tmp_path


def read(home: Path, text: str, name: str = "list.csv", **options) -> Collection:
    (home / name).write_text(text, encoding="utf-8")
    return table.read(str(home / name), str(home / "audio"), progress=False, **options)


def events(*rows: str) -> str:
    """A table with the columns file, label, start and end."""
    return "\n".join(["file,label,start,end", *rows, ""])


def clips(made: Collection) -> list[tuple]:
    """The clips, each as file, start, end and labels."""
    return [(Path(clip.path).name, clip.start, clip.end, *clip.labels) for clip in made.clips]


TABLES = {
    "start and end": "file,label,start,end\na.wav,dog,0,1\na.wav,cat,1.0,2\nb.wav,cat,0,1\n",
    "onset and offset": "onset,offset,fname,class\n0,1,a.wav,dog\n1,2,a.wav,cat\n0,1.00,b.wav,cat\n",
    "seconds": "path,start_seconds,end_seconds,label\na.wav,0,1,dog\na.wav,1,2,cat\nb.wav,0,1,cat\n",
    "times": "path;Start_Time;End_Time;label\na.wav;0,0;1,0;dog\na.wav;1,0;2,0;cat\nb.wav;0,0;1,0;cat\n",
    "BirdNET": "Start (s),End (s),Common name,File\n0.0,1.0,dog,a.wav\n1.0,2.0,cat,a.wav\n0.0,1.0,cat,b.wav\n",
    "milliseconds": "path,begin_ms,stop_ms,label\na.wav,0,1000,dog\na.wav,1000,2000,cat\nb.wav,0,1000,cat\n",
    "duration": "path,start,duration,label\na.wav,0,1,dog\na.wav,1,1,cat\nb.wav,0,1,cat\n",
    "clock": "path,start,end,label\na.wav,0:00,0:01,dog\na.wav,00:00:01,00:00:02.0,cat\nb.wav,0,0:01,cat\n",
    "DCASE": "filename\tonset\toffset\tevent_label\na.wav\t0\t1\tdog\na.wav\t1\t2\tcat\nb.wav\t0\t1\tcat\n",
    "Raven": "Selection\tView\tBegin Time (s)\tEnd Time (s)\tBegin Path\tSpecies\n"
    "1\tWaveform 1\t0.0\t1.0\tC:\\field\\a.wav\tdog\n1\tSpectrogram 1\t0.0\t1.0\tC:\\field\\a.wav\tdog\n"
    "2\tSpectrogram 1\t1.0\t2.0\tC:\\field\\a.wav\tcat\n3\tSpectrogram 1\t0.0\t1.0\tC:\\field\\deep\\b.wav\tcat\n",
    "Raven, files in sequence": "Begin Time (s)\tEnd Time (s)\tFile Offset (s)\tBegin File\tAnnotation\n"
    "0.0\t1.0\t0.0\ta.wav\tdog\n1.0\t2.0\t1.0\ta.wav\tcat\n3.0\t4.0\t0.0\tb.wav\tcat\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_rows_with_times_are_segments(home, kind):
    made = read(home, TABLES[kind])
    assert clips(made) == [("a.wav", 0, 1, "dog"), ("a.wav", 1, 2, "cat"), ("b.wav", 0, 1, "cat")]
    assert made.exclusive
    assert made.excluded == ()
    assert "; 3 segments of 2 recordings cut by the columns " in made.layout
    if kind == "Raven":
        assert any("no column File Offset (s)" in note for note in made.notes)
    else:
        assert made.notes == ()


@pytest.mark.parametrize(
    "names",
    ["start_second,end_second", "segment_start,segment_end", "event_onset,event_offset", "time_start,time_end",
     "startSec,endSec", "t_start,t_end", "segment_start_s,segment_duration"],
)  # fmt: skip
def test_columns_of_times_may_have_further_words(home, names):
    made = read(home, f"file,label,{names}\na.wav,dog,0,1\nb.wav,cat,0.0,2\n")
    assert clips(made) == [("a.wav", 0, 1, "dog"), ("b.wav", 0, 2, "cat")]
    assert made.notes == ()


@pytest.mark.parametrize("names", ["t0,t1", "t_min,t_max", "from,to", "begin_pos,end_pos"])
def test_columns_that_may_have_times_are_noted(home, names):
    made = read(home, f"file,label,{names}\na.wav,dog,0,1\nb.wav,cat,0.0,2\n")
    assert clips(made) == [("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat")]
    assert made.notes == (
        f"the columns {names.replace(',', ' and ')} are not used: name them with --start-column and --end-column if "
        "they are times in seconds",
    )


@pytest.mark.parametrize("names", ["start_sample,end_sample", "start_frame,end_frame"])
def test_columns_of_times_in_other_units_are_noted(home, names):
    made = read(home, f"file,label,{names}\na.wav,dog,0,8000\nb.wav,cat,0,1600\n")
    assert clips(made) == [("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat")]
    assert [note.partition(" are not used, as times are read in seconds")[0] for note in made.notes] == [
        f"the columns {names.replace(',', ' and ')}"
    ]


@pytest.mark.parametrize(
    "columns", ["event_start,event_end\na.wav,dog,May 1,June 2", "min_freq,max_freq\na.wav,dog,1,2"]
)
def test_columns_of_other_values_are_not_times(home, columns):
    made = read(home, f"file,label,{columns}\n")
    assert (clips(made), made.notes) == ([("a.wav", *WHOLE, "dog")], ())


def test_rows_with_the_same_times_are_one_clip_with_all_labels(home):
    made = read(home, events("a.wav,dog,0.3,0.9", "b.wav,dog,1,2", "a.wav,cat,0.30,0.900", "a.wav,dog,0.3,0.9"))
    assert clips(made) == [("a.wav", 0.3, 0.9, "dog", "cat"), ("b.wav", 1, 2, "dog")]
    assert not made.exclusive
    made = read(home, "file,label,start,duration\na.wav,dog,0.1,0.2\na.wav,cat,0.1,0.20\nb.wav,dog,,\n")
    assert clips(made) == [("a.wav", 0.1, 0.3, "dog", "cat"), ("b.wav", *WHOLE, "dog")]


def test_overlapping_segments_with_other_labels_are_noted(home):
    rows = ("a.wav,dog,0,2", "a.wav,cat,1,3", "a.wav,dog,2.5,3", "b.wav,dog,0,1", "b.wav,dog,0.5,2")
    made = read(home, events(*rows))
    (note,) = made.notes
    assert note.startswith("segments that begin before another one with other labels ends: 2, such as ")
    assert "a.wav#t=1,3; each is labelled only by the lines with its own times" in note


def test_times_without_sound_are_excluded_with_the_line(home):
    without_sound = ("a.wav,dog,1,1", "a.wav,cat,2,1", "a.wav,dog,-1,1")
    made = read(home, events(*without_sound, "a.wav,cat,0,1", "b.wav,,0,1", "b.wav,dog,1,2"))
    assert clips(made) == [("a.wav", 0, 1, "cat"), ("b.wav", 1, 2, "dog")]
    assert [clip.reason.partition(" of ")[0] for clip in made.excluded] == [
        "starts at 1 s and ends at 1 s in line 2", "starts at 2 s and ends at 1 s in line 3",
        "starts at -1 s and ends at 1 s in line 4", "has no label in line 6: add one, or remove the line.",
    ]  # fmt: skip
    assert made.excluded[3].path.endswith("b.wav#t=0,1")


MISTAKES = {
    "a word": (events("a.wav,dog,0,soon"), {}, "line 2 of .* has the end 'soon': give seconds"),
    "infinity": (events("a.wav,dog,0,inf"), {}, "line 2 of .* has the end 'inf': give seconds"),
    "one of two": (
        events("a.wav,dog,0,1", "a.wav,cat,1,"),
        {},
        "line 3 of .* has no end but other times",
    ),
    "no such column": (
        "file,label,a\na.wav,dog,0\n",
        {"start": "b", "end": "a"},
        "has no column 'b', only file, label",
    ),
    "one column": (
        "file,label,a\na.wav,dog,0\n",
        {"start": "a"},
        "has no pair of times: name --start-column",
    ),
    "two parts": (
        "file,label,start,end,split\na.wav,dog,0,1,train\na.wav,cat,0,1,test\n",
        {},
        "lines 2 and 3 of .* have the same segment of .*a.wav in different parts of the split",
    ),
    "twice without times": (
        "file,label\na.wav,dog\na.wav,cat\n",
        {},
        "both name a.wav: .* or add columns of starts",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_of_one_sentence(home, mistake):
    text, columns, expected = MISTAKES[mistake]
    with pytest.raises(CollectionError, match=expected) as caught:
        read(home, text, columns=Columns(**columns))
    one_sentence(caught.value)


def test_columns_can_be_named_and_switched_off(home):
    text = "file,label,from,to,start,end\na.wav,dog,1,2,0,1\nb.wav,cat,0,1,1,2\n"
    assert clips(read(home, text))[0] == ("a.wav", 0, 1, "dog")
    assert clips(read(home, text, columns=Columns(start="from", end="to")))[0] == ("a.wav", 1, 2, "dog")
    made = read(home, text, columns=Columns(start="none"))
    assert clips(made) == [("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat")]
    assert "segment" not in made.layout


def test_a_single_time_is_not_used_and_noted(home):
    made = read(home, "file,label,start\na.wav,dog,1\nb.wav,cat,0\n")
    assert clips(made) == [("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat")]
    assert made.notes == ("the column start is not used, as there is none of the other time: recordings are not cut",)


def test_times_in_longer_originals_do_not_cut(home):
    """UrbanSound8K and AudioSet have the times in the recordings that the files were cut from."""
    made = read(home, "slice_file_name,start,end,class\na.wav,0,1,dog\nb.wav,17.5,19,cat\n")
    assert (clips(made), made.notes) == ([("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat")], ())
    tones(home / "audio" / "c.wav", "dog")
    made = read(home, "file,start,end,label\na.wav,0,3,dog\nb.wav,30,33,cat\nc.wav,8,9,dog\n")
    assert clips(made) == [("a.wav", *WHOLE, "dog"), ("b.wav", *WHOLE, "cat"), ("c.wav", *WHOLE, "dog")]
    (note,) = made.notes
    assert note.startswith("the times of 2 of 3 segments are not within their recordings, such as ")
    assert "b.wav#t=30,33: they are taken for times in longer originals, and whole recordings are labelled" in note
    # A single wrong time is that of an unreadable clip.
    made = read(home, "file,start,end,label\na.wav,0,3,dog\nb.wav,30,33,cat\nc.wav,0,1,dog\n")
    assert clips(made)[1] == ("b.wav", 30, 33, "cat")


def test_strong_labels_of_audioset_are_found_by_id(home):
    ids = ("b0RFKhbpFJA", "-0RWZT-miFs")
    tones(home / "audio" / f"Y{ids[0]}_30.000_40.000.wav", "dog", "cat")
    tones(home / "audio" / "eval" / f"{ids[1]}.flac", "crow", "dog")
    rows = [f"{ids[0]}_30000\t0.000\t0.988\t/m/0bt9lr", f"{ids[1]}_420000\t1.2\t1.9\t/m/04s8yn"]
    rows += [f"{ids[0]}_30000\t1.100\t2.000\t/m/01yrx", "9zzzzzzzzzz_0\t0.0\t1.0\t/m/01yrx"]
    made = read(home, "\n".join(["segment_id\tstart_time_seconds\tend_time_seconds\tlabel", *rows]), "strong.tsv")
    assert clips(made) == [
        (f"Y{ids[0]}_30.000_40.000.wav", 0, 0.988, "/m/0bt9lr"), (f"{ids[1]}.flac", 1.2, 1.9, "/m/04s8yn"),
        (f"Y{ids[0]}_30.000_40.000.wav", 1.1, 2, "/m/01yrx"),
    ]  # fmt: skip
    assert [clip.reason.partition(" (")[0] for clip in made.excluded] == ["is missing"]


def test_a_label_file_of_audacity_belongs_to_the_recording_of_its_name(home):
    text = "0.000000\t1.000000\tdog\n\\\t200.0\t400.0\n1,000000\t2,000000\tcat\n2.5\t2.5\tcrow\n2.000000\t3.000000\t\n"
    made = read(home, text, "a.txt")
    assert clips(made) == [("a.wav", 0, 1, "dog"), ("a.wav", 1, 2, "cat")]
    assert made.layout == "label file of Audacity; 2 segments of 1 recording cut by its times"
    assert [clip.reason.partition(":")[0].partition(" of ")[0] for clip in made.excluded] == [
        "starts at 2.5 s and ends at 2.5 s in line 4", "has no label in line 5",
    ]  # fmt: skip


def test_a_folder_with_label_files(home):
    (home / "audio" / "a.txt").write_text("0\t1\tdog\n1\t2\tcat\n0\t1\tcat\n")
    (home / "audio" / "deep" / "b.txt").write_text("0.0\t1.0\tcat\n")
    tones(home / "audio" / "c.wav", "crow")
    made = folder.read(str(home / "audio"), progress=False)
    assert sorted(clips(made)) == [("a.wav", 0, 1, "dog", "cat"), ("a.wav", 1, 2, "cat"), ("b.wav", 0, 1, "cat")]
    assert made.layout == "label files of Audacity; 3 segments of 2 recordings cut by their times"
    assert [(Path(clip.path).name, clip.reason[:17]) for clip in made.excluded] == [("c.wav", "has no label file")]
    with pytest.raises(CollectionError, match="has no folds, but --fold is 1"):
        folder.read(str(home / "audio"), fold="1", progress=False)


def test_other_text_files_do_not_make_label_files(home):
    (home / "audio" / "a.txt").write_text("a dog, a cat and a crow\n")
    (home / "audio" / "deep" / "b.txt").write_text("1\t2\t3\t4\n")
    with pytest.raises(CollectionError, match="there is only the class deep"):
        collection.prepare(folder.read(str(home / "audio"), progress=False), str(home / "out"), progress=False)


def prepared(home: Path, text: str, *options: str) -> dict[str, list[dict]]:
    """Runs psla prepare csv and returns the records of each datafile."""
    (home / "list.csv").write_text(text)
    arguments = ["prepare", "csv", str(home / "list.csv"), "--audio", str(home / "audio"), "--out", str(home / "out")]
    assert main.main([*arguments, *options]) == 0
    return {path.stem: json.loads(path.read_text())["data"] for path in sorted((home / "out").glob("*.json"))}


def test_a_table_of_segments_becomes_datafiles_that_have_their_sound(home, capsys):
    rows = [f"r{i}.wav,{name},{start},{start + 0.5}" for i in range(10) for start, name in enumerate(HERTZ)]
    for i in range(10):
        tones(home / "audio" / f"r{i}.wav", *HERTZ)
    parts = prepared(home, events(*rows, "r0.wav,dog,7,8"))
    output = capsys.readouterr().out
    assert "; 31 segments of 10 recordings cut by the columns start and end" in output
    assert "r0.wav#t=7,8 is not within the recording, which lasts 3 s: correct the times" in output
    assert "30 clips are of 10 sources; all clips of a source are in one part" in output
    recordings = [{record["wav"] for record in records} for records in parts.values()]
    assert sum(map(len, recordings)) == len(set().union(*recordings)) == 10
    assert len(parts["evaluation"]) == 3
    vocabulary = Vocabulary.read(home / "out" / "class_labels_indices.csv")
    for name in parts:
        data = Datafile.read(home / "out" / f"{name}.json", vocabulary)
        for i in range(len(data)):
            waveform = segments.read(data.audio(i))
            (label,) = data.labels(i)
            assert abs(np.abs(np.fft.rfft(waveform)).argmax() / 0.5 - HERTZ[vocabulary.names[label]]) < 4


def test_segments_of_a_single_recording_are_split_with_a_note(home, capsys):
    tones(home / "audio" / "long.wav", *["dog", "cat"] * 10, seconds=0.5)
    rows = [f"long.wav,{'dog' if i % 2 == 0 else 'cat'},{i / 2},{i / 2 + 0.5}" for i in range(20)]
    parts = prepared(home, events(*rows))
    assert [len(parts[name]) for name in ("train", "validation", "evaluation")] == [16, 2, 2]
    note = "sources with clips in several parts of the split, which makes metrics too high: 1"
    assert note in capsys.readouterr().out


def test_recordings_are_compared_once_and_not_with_themselves(home, capsys):
    prepared(home, TABLES["start and end"] + "a.wav,cat,2,3\nb.wav,dog,1,2\n")
    assert "copies" not in capsys.readouterr().out


def test_excluded_lines_are_not_counted_as_recordings(home):
    (home / "list.csv").write_text(events("a.wav,dog,0,1", "a.wav,cat,1,2", "a.wav,dog,9,10", "a.wav,cat,2,1", *(
        f"{file}.wav,{label},{start},{start + 1}" for file, start, label in [("b", 0, "cat"), ("b", 1, "dog")]
    )))  # fmt: skip
    (home / "audio" / "broken.wav").touch()
    made = table.read(str(home / "list.csv"), str(home / "audio"), progress=False)
    report = collection.prepare(made, str(home / "out"), progress=False).report().splitlines()
    assert f"excluded: 2 lines, all listed in {home / 'out' / 'left_out.csv'}" in report
    with open(home / "list.csv", "a") as file:
        file.write("broken.wav,dog,,\n")
    made = table.read(str(home / "list.csv"), str(home / "audio"), progress=False)
    report = collection.prepare(made, str(home / "out"), force=True, progress=False).report().splitlines()
    assert f"excluded: 1 recording and 2 lines, all listed in {home / 'out' / 'left_out.csv'}" in report


def test_one_clip_is_counted_in_the_singular(home):
    made = read(home, "file,label,split\na.wav,dog,train\nb.wav,cat,test\n")
    report = collection.prepare(made, str(home / "out"), progress=False).report().splitlines()
    assert [line.rpartition(": ")[2] for line in report if ".json" in line] == ["1 clip", "1 clip"]
