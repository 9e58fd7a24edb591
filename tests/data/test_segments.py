"""Segment lists as they are published, and broken ones."""

from __future__ import annotations

import csv
from pathlib import Path

import miniature
import numpy as np
import pytest
from servers import one_sentence

from psla_jax.data.segments import AudioSetError, Clips
from psla_jax.ontology import Vocabulary

VOCABULARY = Vocabulary.read("audioset")
HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, labels\n"
ONE = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
TWO = '-_x0123456A, 0.000, 10.000, "/m/04rlf"\n'


def read(folder: Path, text: str | bytes, name: str = "eval_segments.csv") -> Clips:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    clips = Clips()
    clips.read(str(folder / name), VOCABULARY)
    return clips


def test_it_is_read_as_the_csv_module_reads_a_line_alone(tmp_path):
    sets = miniature.clips({"balanced_train": 40, "eval": 20})
    clips = Clips()
    for path in miniature.write_lists(tmp_path, sets):
        clips.read(path, VOCABULARY)
    assert clips.sets == {"balanced_train": range(40), "eval": range(40, 60)}
    for row, clip in enumerate([*sets["balanced_train"], *sets["eval"]]):
        (cells,) = csv.reader([clip.line], skipinitialspace=True)
        assert clips.ids[row] == cells[0]
        assert (clips.starts[row], clips.ends[row]) == (float(cells[1]), float(cells[2]))
        assert [VOCABULARY.mids[i] for i in clips.classes(row)] == cells[3].split(",")
        assert clips.rows[cells[0]] == row


def test_clips_of_every_class_are_counted(tmp_path):
    clips = read(tmp_path, HEAD + ONE + TWO)
    counts = clips.counts(np.array([True, False]), len(VOCABULARY))
    assert {VOCABULARY.mids[i] for i in np.flatnonzero(counts)} == {"/m/09x0r", "/t/dd00088"}
    assert clips.counts(np.array([True, True]), len(VOCABULARY)).sum() == 3
    assert clips.counts(np.array([False, False]), len(VOCABULARY)).sum() == 0


@pytest.mark.parametrize(
    "text",
    [
        HEAD + ONE + TWO,
        ONE + TWO,
        "YTID,start_seconds,end_seconds,positive_labels\n" + ONE + TWO,
        "\ufeff" + HEAD + ONE + "\n" + TWO,
        (HEAD + ONE + TWO).replace("\n", "\r\n"),
        (ONE + TWO).replace(", ", ",").strip(),
    ],
)
def test_other_forms_of_the_same_list(tmp_path, text):
    clips = read(tmp_path, text)
    assert clips.ids == ["--PJHxphWEs", "-_x0123456A"]
    assert list(clips.starts) == [30, 0]
    assert clips.sets == {"eval": range(2)}


BROKEN = {
    "unquoted labels": (ONE.replace('"', ""), "line 5 of"),
    "too few cells": ("--PJHxphWEs, 30.000\n", "line 5 of"),
    "no number": (ONE.replace("30.000", "start"), "line 5 of"),
    "end before start": (ONE.replace("40.000", "20.000"), "line 5 of"),
    "not a number": (ONE.replace("40.000", "nan"), "line 5 of"),
    "short id": (ONE.replace("--PJ", ""), "line 5 of"),
    "quote not closed": (ONE[:-2] + "\n" + TWO.replace("0123", "4567"), "line 5 of"),
    "quote not closed at the end": (ONE[:-2], "line 5 of"),
    "unknown mid": (
        ONE.replace("/t/dd00088", "/m/nothing"),
        "line 5 of .* has the mid '/m/nothing', which is not among",
    ),
    "no label": (ONE.replace("/m/09x0r,/t/dd00088", ""), "line 5 of .* has the mid ''"),
    "an id again": (ONE + TWO, "line 6 of .* lists the clip -_x0123456A again"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_line_is_named(tmp_path, mistake):
    text, said = BROKEN[mistake]
    with pytest.raises(AudioSetError, match=said) as caught:
        read(tmp_path, HEAD + TWO + text)
    assert "eval_segments.csv" in one_sentence(caught.value)


def test_files_that_are_no_lists(tmp_path):
    for text in (HEAD, ""):
        with pytest.raises(AudioSetError, match="lists no clip"):
            read(tmp_path, text)
    with pytest.raises(AudioSetError, match="no text in UTF-8"):
        read(tmp_path, ONE.replace("PJ", "é").encode("latin-1"))
    with pytest.raises(AudioSetError, match=r"cannot be read \(No such file.*storage\.googleapis\.com"):
        Clips().read(str(tmp_path / "nothing.csv"), VOCABULARY)


def test_a_list_is_read_once_and_a_clip_of_two_lists_is_noted(tmp_path):
    clips = read(tmp_path, HEAD + ONE + TWO)
    with pytest.raises(AudioSetError, match="two segment lists are named eval"):
        clips.read(str(tmp_path / "eval_segments.csv"), VOCABULARY)
    (tmp_path / "train.csv").write_text(TWO)
    clips.read(str(tmp_path / "train.csv"), VOCABULARY)
    assert clips.repeats == {2: 1}
    assert clips.ids[2] == clips.ids[1]
