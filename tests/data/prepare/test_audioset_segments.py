"""Segment lists in the published format, and malformed ones."""

from __future__ import annotations

import csv
from pathlib import Path

import miniature
import numpy as np
import pytest
from servers import one_sentence

from psla_jax.data.prepare.audioset_segments import AudioSetError, SegmentTable
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary.read("audioset")
HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, labels\n"
ONE = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
TWO = '-_x0123456A, 0.000, 10.000, "/m/04rlf"\n'


def read(folder: Path, text: str | bytes, name: str = "eval_segments.csv") -> SegmentTable:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    table = SegmentTable()
    table.read(str(folder / name), VOCABULARY)
    return table


def test_lists_are_parsed_like_single_lines_by_the_csv_module(tmp_path):
    sets = miniature.clips({"balanced_train": 40, "eval": 20})
    table = SegmentTable()
    for path in miniature.write_lists(tmp_path, sets):
        table.read(path, VOCABULARY)
    assert table.lists == {"balanced_train": range(40), "eval": range(40, 60)}
    for row, clip in enumerate([*sets["balanced_train"], *sets["eval"]]):
        (cells,) = csv.reader([clip.line], skipinitialspace=True)
        assert table.ids[row] == cells[0]
        assert (table.starts[row], table.ends[row]) == (float(cells[1]), float(cells[2]))
        assert [VOCABULARY.mids[i] for i in table.classes(row)] == cells[3].split(",")
        assert table.row_of_id[cells[0]] == row


def test_clips_of_every_class_are_counted(tmp_path):
    table = read(tmp_path, HEAD + ONE + TWO)
    counts = table.class_counts(np.array([True, False]), len(VOCABULARY))
    assert {VOCABULARY.mids[i] for i in np.flatnonzero(counts)} == {"/m/09x0r", "/t/dd00088"}
    assert table.class_counts(np.array([True, True]), len(VOCABULARY)).sum() == 3
    assert table.class_counts(np.array([False, False]), len(VOCABULARY)).sum() == 0


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
def test_variants_of_the_format_are_read_alike(tmp_path, text):
    table = read(tmp_path, text)
    assert table.ids == ["--PJHxphWEs", "-_x0123456A"]
    assert list(table.starts) == [30, 0]
    assert table.lists == {"eval": range(2)}


MALFORMED = {
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
    "an id again": (ONE + TWO, "line 6 of .* repeats the clip -_x0123456A"),
}


@pytest.mark.parametrize("mistake", MALFORMED)
def test_the_error_names_a_malformed_line(tmp_path, mistake):
    text, message = MALFORMED[mistake]
    with pytest.raises(AudioSetError, match=message) as caught:
        read(tmp_path, HEAD + TWO + text)
    assert "eval_segments.csv" in one_sentence(caught.value)


def test_files_that_are_not_segment_lists_are_rejected(tmp_path):
    for text in (HEAD, ""):
        with pytest.raises(AudioSetError, match="lists no clip"):
            read(tmp_path, text)
    with pytest.raises(AudioSetError, match="not UTF-8 text"):
        read(tmp_path, ONE.replace("PJ", "é").encode("latin-1"))
    with pytest.raises(AudioSetError, match=r"cannot be read \(No such file.*storage\.googleapis\.com"):
        SegmentTable().read(str(tmp_path / "nothing.csv"), VOCABULARY)


def test_a_list_is_read_only_once_and_clips_of_two_lists_are_recorded(tmp_path):
    table = read(tmp_path, HEAD + ONE + TWO)
    with pytest.raises(AudioSetError, match="two segment lists are named eval"):
        table.read(str(tmp_path / "eval_segments.csv"), VOCABULARY)
    (tmp_path / "train.csv").write_text(TWO)
    table.read(str(tmp_path / "train.csv"), VOCABULARY)
    assert table.repeats == {2: 1}
    assert table.ids[2] == table.ids[1]
