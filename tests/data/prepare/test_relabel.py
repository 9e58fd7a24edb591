"""Transfer of published labels to a local copy of the clips: psla prepare relabel."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from disks import full_disk

from psla_jax.cli import main
from psla_jax.data import datafile
from psla_jax.data.datafile import Record

IDS = ("--PJHxphWEs", "0aaaaaaaaaa", "1bbbbbbbbbb", "Yccccccccc1", "2dddddddddd")
ENHANCED = [
    (f"/data/sls/audioset/{IDS[0]}.flac", ["speech", "male"]),
    (f"/data/sls/audioset/{IDS[1]}.flac", ["music", "guitar", "a"]),
    (f"/data/sls/audioset/{IDS[2]}.flac", ["dog"]),
    (f"/data/sls/audioset/{IDS[3]}.flac", ["dog", "bark"]),
    ("/data/sls/audioset/9zzzzzzzzzz.flac", ["cat"]),
]
MINE = [
    (f"deep/in/Y{IDS[0]}_30.000_40.000.wav", ["speech"]),
    (f"/else/Y{IDS[1]}.mp3", ["music", "guitar", "drum"]),
    (f"{IDS[2]}_0.wav", ["dog"]),
    (f"{IDS[2]}_10000.wav", ["cat"]),
    (f"Y{IDS[3]}-30.wav", ["bark"]),
    (f"{IDS[4]}.wav", ["wind", "rain"]),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, clips in (("enhanced", ENHANCED), ("mine", MINE)):
        (tmp_path / name).mkdir()
        datafile.write(tmp_path / name / "data.json", clips)
    return tmp_path


def arguments(home: Path, *more: str, out: str = "mine/new.json") -> list[str]:
    files = [str(home / "enhanced" / "data.json"), "--onto", str(home / "mine" / "data.json"), "--out", str(home / out)]
    return ["prepare", "relabel", *files, *more]


def clips(path: Path) -> list[tuple[str, str]]:
    return [(clip["wav"], clip["labels"]) for clip in json.loads(path.read_text())["data"]]


def error_message(capsys: pytest.CaptureFixture, command: list[str]) -> str:
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    assert error.count("\n") == 1
    return error


def test_a_full_disk_does_not_block_the_same_command(home, monkeypatch, capsys):
    before = sorted(home.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("psla_jax.data.prepare.relabel._write_unmatched", full_disk)
        assert main.main(arguments(home)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before
    assert main.main(arguments(home)) == 0


def test_matched_clips_get_sorted_labels_and_unmatched_ones_keep_theirs(home, capsys):
    assert main.main(arguments(home)) == 0
    wavs = [wav for wav, _ in MINE]
    labels = ["male,speech", "a,guitar,music", "dog", "cat", "bark,dog", "wind,rain"]
    assert clips(home / "mine" / "new.json") == list(zip(wavs, labels))
    assert capsys.readouterr().out.splitlines() == [
        "3 of 6 clips (50.0%) got the enhanced labels, matched 3 by AudioSet id",
        "labels added: 3, removed: 1, clips changed: 3",
        f"not found: 1, labels unchanged: {wavs[5]}",
        f"ambiguous, because other clips share their id: 2, labels unchanged: {wavs[2]}, {wavs[3]}",
        "enhanced clips that are not among yours: 2",
        "classes that none of your clips had before, please check: 2, a, male",
        f"{home / 'mine' / 'new.json'}: the datafile, with its weights beside it",
        f"{home / 'mine' / 'new_unmatched.csv'}: the clips without new labels",
    ]
    with open(home / "mine" / "new_unmatched.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["wav", "reason"], [wavs[5], "not found"], [wavs[2], "ambiguous"], [wavs[3], "ambiguous"],
        ]  # fmt: skip
    weights = np.loadtxt(home / "mine" / "new_weight.csv")
    # The class counts are 1 for bark, 2 for dog, and 1 each for male and speech.
    assert weights[4] == pytest.approx(1000 / 1.01 + 1000 / 2.01)
    assert weights[0] == pytest.approx(2 * 1000 / 1.01)


def test_unmatched_clips_can_be_dropped(home, capsys):
    assert main.main(arguments(home, "--unmatched", "drop")) == 0
    assert [wav for wav, _ in clips(home / "mine" / "new.json")] == [MINE[i][0] for i in (0, 1, 4)]
    assert "not found: 1, dropped: 2dddddddddd.wav" in capsys.readouterr().out
    assert len(np.loadtxt(home / "mine" / "new_weight.csv")) == 3


def test_relative_paths_become_absolute_in_another_folder(home):
    assert main.main(arguments(home, out="new.json")) == 0
    assert [wav for wav, _ in clips(home / "new.json")] == [str(home / "mine" / wav) for wav, _ in MINE]


def test_a_complete_match_writes_no_list(home, capsys):
    (home / "mine" / "data.json").write_bytes((home / "enhanced" / "data.json").read_bytes())
    assert main.main(arguments(home)) == 0
    assert "5 of 5 clips (100.0%) got the enhanced labels, matched 5 by path" in capsys.readouterr().out
    assert not (home / "mine" / "new_unmatched.csv").exists()
    assert [labels for _, labels in clips(home / "mine" / "new.json")] == [",".join(sorted(m)) for _, m in ENHANCED]


def test_existing_files_are_not_replaced_without_force(home, capsys):
    (home / "mine" / "new.json").write_text("years of work")
    assert "new.json would be overwritten" in error_message(capsys, arguments(home))
    assert (home / "mine" / "new.json").read_text() == "years of work"
    assert main.main(arguments(home, "--force")) == 0
    assert len(clips(home / "mine" / "new.json")) == 6
    for own in ("mine/data.json", "enhanced/data.json"):
        error = error_message(capsys, arguments(home, "--force", out=own))
        assert f"would replace the input {home / own}" in error
    assert len(clips(home / "mine" / "data.json")) == 6


def test_a_clip_that_is_listed_twice(home, capsys):
    twice = [*ENHANCED, (ENHANCED[0][0], ENHANCED[0][1][::-1])]
    datafile.write(home / "enhanced" / "data.json", twice)
    assert main.main(arguments(home)) == 0
    capsys.readouterr()
    datafile.write(home / "enhanced" / "data.json", [*ENHANCED, (ENHANCED[0][0], ["speech"])])
    error = error_message(capsys, arguments(home, out="again.json"))
    assert f"clip 5 of {home / 'enhanced' / 'data.json'} repeats {ENHANCED[0][0]} with other labels" in error
    datafile.write(home / "enhanced" / "data.json", ENHANCED)
    datafile.write(home / "mine" / "data.json", [*MINE, MINE[2]])
    assert f"clip 6 of {home / 'mine' / 'data.json'}" in error_message(capsys, arguments(home, out="again.json"))
    assert not (home / "again.json").exists()


def test_datafiles_that_do_not_match_are_errors(home, capsys):
    datafile.write(home / "mine" / "data.json", [("x.wav", ["a"])])
    error = error_message(capsys, arguments(home))
    assert "none of the 1 clips" in error
    assert "x.wav" in error
    (home / "enhanced" / "data.json").write_text('{"data": []}')
    assert "has no clip" in error_message(capsys, arguments(home))
    (home / "enhanced" / "data.json").unlink()
    assert "cannot be read" in error_message(capsys, arguments(home))
    assert sorted(path.name for path in (home / "mine").iterdir()) == ["data.json"]


def test_segments_keep_their_times_and_match_by_them(home, capsys):
    mine = [Record("a.wav", ["dog"], 1.0, 2.5), Record("a.wav", ["cat"], 2.5, 4.0), ("b.wav", ["cat"])]
    enhanced = [Record("/x/a.flac", ["cat", "purr"], 2.5, 4.0), Record("/x/a.flac", ["bark"], 1.0, 2.5)]
    datafile.write(home / "mine" / "data.json", mine)
    datafile.write(home / "enhanced" / "data.json", [*enhanced, Record("/x/b.flac", ["rain"], 0.0, 1.0)])
    assert main.main(arguments(home)) == 0
    assert list(datafile.records(home / "mine" / "new.json")) == [
        Record("a.wav", ("bark",), 1.0, 2.5), Record("a.wav", ("cat", "purr"), 2.5, 4.0), Record("b.wav", ("cat",)),
    ]  # fmt: skip
    assert "not found: 1, labels unchanged: b.wav" in capsys.readouterr().out
    datafile.write(home / "mine" / "data.json", [*mine, mine[0]])
    assert "clip 3 of" in error_message(capsys, arguments(home, "--force"))
