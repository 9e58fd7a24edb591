"""Checks for identical audio and repeated files, in one data set and in two."""

from __future__ import annotations

import numpy as np
from recordings import MIDS, clean, measure, noise, only, write

from psla_jax.data.datafile import Record
from psla_jax.data.validate.duplicates import check_duplicates, check_overlap, check_repeated_files


def test_sets_without_copies_give_no_finding(tmp_path):
    other = measure(tmp_path / "other", [("x.wav", [])] if write(tmp_path / "other/x.wav", noise(99)) else [])
    dataset = measure(tmp_path, clean(tmp_path), against={"other.json": other})
    assert [*check_duplicates(dataset), *check_repeated_files(dataset), *check_overlap(dataset)] == []


def test_copies_are_found_in_any_format_with_contradicting_labels(tmp_path):
    records = clean(tmp_path)
    write(tmp_path / "copy of 1.flac", noise(1))
    write(tmp_path / "again 1.wav", noise(1), subtype="FLOAT")
    write(tmp_path / "copy of 3.wav", noise(3))
    more = [("copy of 1.flac", MIDS[2:]), ("again 1.wav", MIDS[:1]), ("copy of 3.wav", MIDS[2:])]
    finding = only(check_duplicates, measure(tmp_path, [*records, *more]))
    assert finding.count == 3
    assert "3 of 7 clips" in finding.title
    assert finding.meaning.startswith("2 groups of files with identical audio. In 1 group the labels contradict")
    assert list(finding.items) == [
        " = ".join(str(tmp_path / name) for name in ("clean1.wav", "copy of 1.flac", "again 1.wav")),
        " = ".join(str(tmp_path / name) for name in ("clean3.wav", "copy of 3.wav")),
    ]


def test_silence_is_no_copy_of_silence(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.wav", 0 * noise())
    assert list(check_duplicates(measure(tmp_path, [("a.wav", []), ("b.wav", [])]))) == []


def test_a_file_in_several_records(tmp_path):
    records = clean(tmp_path)
    again = [("clean1.wav", MIDS[2:]), ("clean0.wav", [MIDS[1], MIDS[0]]), ("clean1.wav", MIDS[2:])]
    dataset = measure(tmp_path, [*records, *again])
    finding = only(check_repeated_files, dataset)
    assert (finding.kind, finding.severity, finding.count) == ("listed-twice", "warning", 2)
    assert list(finding.items) == [f"{tmp_path / 'clean0.wav'}  2 times", f"{tmp_path / 'clean1.wav'}  3 times"]
    assert list(check_duplicates(dataset)) == []


def test_a_record_for_each_label_of_a_file_is_an_error(tmp_path):
    dataset = measure(tmp_path, [*clean(tmp_path), ("clean1.wav", MIDS[:1])])
    finding = only(check_repeated_files, dataset)
    assert (finding.kind, finding.severity) == ("listed-with-other-labels", "error")
    assert list(finding.items) == [f"{tmp_path / 'clean1.wav'}  2 times"]


def test_audio_and_file_names_of_another_data_set(tmp_path):
    records = clean(tmp_path, 6)
    other = tmp_path / "other"
    write(other / "clean2.flac", noise(2))
    write(other / "renamed.wav", noise(4))
    write(other / "clean5.wav", noise(50))
    write(other / "new.wav", noise(51))
    theirs = measure(
        other, [(name, []) for name in ("clean2.flac", "renamed.wav", "clean5.wav", "new.wav", "gone.wav")]
    )
    identical, named, unreadable = check_overlap(measure(tmp_path, records, against={"eval.json": theirs}))
    assert (identical.kind, identical.severity, identical.count) == ("overlap", "error", 2)
    assert identical.title == "Identical audio in eval.json: 2 of 6 clips"
    assert list(identical.items) == [
        f"{tmp_path / 'clean2.wav'} = {other / 'clean2.flac'}",
        f"{tmp_path / 'clean4.wav'} = {other / 'renamed.wav'}",
    ]
    assert (named.kind, named.severity) == ("overlap-by-name", "note")
    assert list(named.items) == [str(tmp_path / "clean5.wav")]
    assert (unreadable.kind, unreadable.severity, unreadable.count) == ("against-unreadable", "warning", 1)


def test_running_numbers_as_names_are_ignored(tmp_path):
    for folder in (tmp_path, tmp_path / "other"):
        write(folder / "0017.wav", noise(len(str(folder))))
        write(folder / "64760.wav", noise(1 + len(str(folder))))
    other = measure(tmp_path / "other", [("0017.wav", []), ("64760.wav", [])])
    dataset = measure(tmp_path, [("0017.wav", []), ("64760.wav", [])], against={"eval.json": other})
    assert list(only(check_overlap, dataset).items) == [str(tmp_path / "64760.wav")]


def test_segments_of_one_recording_are_different_clips(tmp_path):
    write(tmp_path / "long.wav", np.concatenate([noise(1), noise(2), noise(1)]))
    records = [Record("long.wav", MIDS[:1], 0.0, 0.5), Record("long.wav", MIDS[1:2], 0.5, 1.0)]
    dataset = measure(tmp_path, records)
    assert [*check_repeated_files(dataset), *check_duplicates(dataset)] == []
    again = measure(tmp_path, [*records, Record("long.wav", MIDS[2:], 1.0, 1.5), records[0]])
    assert list(only(check_repeated_files, again).items) == [f"{tmp_path / 'long.wav'}#t=0,0.5  2 times"]
    copies = only(check_duplicates, again)
    assert list(copies.items) == [" = ".join(f"{tmp_path / 'long.wav'}#t={time}" for time in ("0,0.5", "1,1.5"))]


def test_segments_of_recordings_of_another_data_set(tmp_path):
    write(tmp_path / "long.wav", np.concatenate([noise(1), noise(2)]))
    write(tmp_path / "whole.wav", noise(3))
    write(tmp_path / "other.wav", noise(4))
    (tmp_path / "eval").mkdir()
    held_out = [Record(str(tmp_path / "long.wav"), [], 0.25, 0.75), (str(tmp_path / "whole.wav"), [])]
    other = measure(tmp_path / "eval", held_out)
    records = [
        Record("long.wav", [], 0.25, 0.75), Record("long.wav", [], 0.5, 1.0), Record("whole.wav", [], 0.1, 0.4),
        Record("other.wav", [], 0.0, 0.2),
    ]  # fmt: skip
    same, recording = check_overlap(measure(tmp_path, records, against={"eval.json": other}))
    path = tmp_path / "long.wav"
    assert (same.kind, list(same.items)) == ("overlap", [f"{path}#t=0.25,0.75 = {path}#t=0.25,0.75"])
    assert (recording.kind, recording.severity) == ("overlap-by-recording", "warning")
    assert list(recording.items) == [f"{path}#t=0.5,1", f"{tmp_path / 'whole.wav'}#t=0.1,0.4"]
