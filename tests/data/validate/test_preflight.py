"""Search for unreadable clips before training."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from psla_jax.audio import decode
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.data.validate import preflight
from psla_jax.data.validate.preflight import ClipProblem, find_unreadable_clips
from psla_jax.vocabulary.vocabulary import Vocabulary

BAD = {1: "cannot be read as audio", 3: "is missing", 7: "is an empty file", 8: "is not a file", 15: "not finite"}


@pytest.fixture
def data(tmp_path):
    for i in range(20):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(400), 16000, subtype="FLOAT")
    (tmp_path / "3.wav").unlink()
    (tmp_path / "7.wav").write_bytes(b"")
    (tmp_path / "8.wav").unlink()
    (tmp_path / "8.wav").mkdir()
    (tmp_path / "1.wav").write_bytes(b"<html>")
    soundfile.write(tmp_path / "15.wav", np.array([0, np.nan]), 16000, subtype="FLOAT")
    datafile.write(tmp_path / "a.json", [(f"{i}.wav", ["a"]) for i in range(20)])
    return Datafile.read(tmp_path / "a.json", Vocabulary(("a",), ("A",)))


def find(data, limit, **options):
    return find_unreadable_clips(data, limit=limit, channel="mean", name="training", progress=False, **options)


@pytest.mark.parametrize("workers", [None, 0, 1, 4])
@pytest.mark.parametrize("limit", [20, 10**9])
def test_every_problem_is_found_once_and_in_order(data, limit, workers, monkeypatch):
    monkeypatch.setattr(preflight, "_BLOCK", 6)
    problems = find(data, limit, workers=workers)
    assert [problem.index for problem in problems] == list(BAD)
    for problem in problems:
        assert problem.path == data.wav(problem.index)
        assert BAD[problem.index] in problem.reason
        assert problem.path not in problem.reason
        assert problem.reason.endswith(".")
        assert ": " in problem.reason


def test_without_a_limit_only_paths_are_looked_up(data, monkeypatch):
    monkeypatch.setattr(decode, "read", None)
    assert [problem.index for problem in find(data, 0)] == [3, 7, 8]


def test_clips_to_read_are_evenly_spaced(data, monkeypatch):
    read = []
    monkeypatch.setattr(decode, "read", lambda path, channel, seconds, **_: read.append((path, channel, seconds)))
    assert [problem.index for problem in find(data, 5)] == [3, 7, 8]
    assert sorted(read) == sorted((data.wav(i), "mean", 600.0) for i in (0, 4, 12, 16))


def test_a_readable_data_set_has_no_problem(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((400, 2)), 44100)
    datafile.write(tmp_path / "a.json", [("a.wav", [])])
    data = Datafile.read(tmp_path / "a.json", Vocabulary(("a",), ("A",)))
    assert find(data, 100) == []


def test_damaged_clips_are_listed_beside_the_unreadable_ones(data):
    soundfile.write(data.wav(4), np.random.default_rng(0).normal(0, 0.1, 40_000), 16000, format="FLAC")
    with open(data.wav(4), "r+b") as file:
        file.truncate(40_000)
    damaged: list[ClipProblem] = []
    assert [problem.index for problem in find(data, 20, damaged=damaged)] == list(BAD)
    (defect,) = damaged
    assert (defect.index, defect.path) == (4, data.wav(4))
    assert "of the 2.50 s that its header states: download" in defect.reason


def test_a_missing_relative_path_is_explained(tmp_path):
    datafile.write(tmp_path / "a.json", [("a.wav", []), (str(tmp_path / "b.wav"), [])])
    data = Datafile.read(tmp_path / "a.json", Vocabulary(("a",), ("A",)))
    explained = ["relative to its own folder" in problem.reason for problem in find(data, 0)]
    assert explained == [True, False]


def test_an_invalid_path_is_missing(tmp_path):
    datafile.write(tmp_path / "a.json", [("nul\0.wav", []), ("a" * 5000, [])])
    data = Datafile.read(tmp_path / "a.json", Vocabulary(("a",), ("A",)))
    assert ["is missing" in problem.reason for problem in find(data, 2)] == [True, True]


def test_progress_goes_to_stderr_alone(data, capfd):
    find_unreadable_clips(data, limit=2, channel="first", name="training")
    assert capfd.readouterr().out == ""


def test_a_problem_is_a_value():
    assert ClipProblem(1, "a", "b") == ClipProblem(1, "a", "b")
    with pytest.raises(AttributeError):
        ClipProblem(1, "a", "b").index = 2
