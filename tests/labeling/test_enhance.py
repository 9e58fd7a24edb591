"""psla enhance: output files, summary and errors."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from disks import full_disk

from psla_jax.cli import main
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    ("/m/sound", "/m/dog", "/m/animal", "/m/cat", "/m/bark", "/m/alien", "/m/quiet"),
    ("Sound", "Dog", "Animal", "Cat", "Bark", "Alien", "Quiet"),
)
ONTOLOGY = {
    "/m/sound": (["/m/animal"], ["abstract"]),
    "/m/animal": (["/m/dog", "/m/cat"], []),
    "/m/dog": (["/m/bark", "/m/quiet"], []),
    "/m/cat": ([], []),
    "/m/bark": ([], []),
    "/m/quiet": ([], []),
}
CLIPS = [
    ["/m/dog", "/m/animal"],
    ["/m/animal"],
    ["/m/bark"],
    ["/m/dog", "/m/bark"],
    ["/m/sound", "/m/cat", "/m/alien"],
]
SCORES = np.array(
    [  # sound, dog, animal, cat, bark, alien, quiet
        [0.125, 0.875, 0.875, 0.125, 0.500, 0.125, 1],
        [0.125, 0.750, 0.625, 0.750, 0.875, 0.125, 1],
        [0.875, 0.875, 0.875, 0.125, 0.750, 0.875, 1],
        [0.125, 0.625, 0.750, 0.125, 0.250, 0.125, 1],
        [0.500, 0.875, 1.000, 0.625, 0.875, 0.500, 1],
    ],
    np.float32,
)
MERGED = [
    "/m/animal,/m/dog", "/m/animal,/m/cat", "/m/animal,/m/bark,/m/dog", "/m/bark,/m/dog",
    "/m/alien,/m/animal,/m/cat,/m/sound",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    VOCABULARY.write(tmp_path / "labels.csv")
    write_ontology(tmp_path, ONTOLOGY)
    datafile.write(tmp_path / "train.json", [(f"audio/{i}.wav", mids) for i, mids in enumerate(CLIPS)])
    save(tmp_path, SCORES)
    return tmp_path


def write_ontology(home: Path, entries: dict) -> None:
    listed = [{"id": m, "name": m, "child_ids": c, "restrictions": r} for m, (c, r) in entries.items()]
    (home / "ontology.json").write_text(json.dumps(listed))


def save(home: Path, scores: np.ndarray, clips=(3, 1, 4, 0, 2)) -> None:
    rows = list(clips)
    np.savez(home / "scores.npz", clips=np.array([str(home / f"audio/{i}.wav") for i in rows]), scores=scores[rows])


def arguments(home: Path, *more: str) -> list[str]:
    files = {"--scores": "scores.npz", "--labels": "labels.csv", "--ontology": "ontology.json"}
    named = [word for option, file in files.items() if option not in more for word in (option, str(home / file))]
    return ["enhance", str(home / "train.json"), *named, *more]


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
        patch.setattr("psla_jax.labeling.enhance._write_table", full_disk)
        assert main.main(arguments(home)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before
    assert main.main(arguments(home)) == 0


def test_enhanced_datafiles_have_the_references_names_and_sorted_labels(home):
    assert main.main(arguments(home)) == 0
    wavs = [f"audio/{i}.wav" for i in range(5)]
    before = [",".join(sorted(mids)) for mids in CLIPS]
    assert clips(home / "train_type1_2_mean.json") == list(zip(wavs, MERGED))
    assert clips(home / "train_type1_mean.json") == list(zip(wavs, [before[0], MERGED[1], *before[2:]]))
    assert clips(home / "train_type2_mean.json") == list(zip(wavs, [*before[:2], MERGED[2], before[3], MERGED[4]]))
    assert sorted(path.name for path in home.iterdir()) == sorted(
        ["labels.csv", "ontology.json", "scores.npz", "train.json", "train_added_mean.csv"]
        + [f"train_{kind}_mean{end}" for kind in ("type1", "type2", "type1_2") for end in (".json", "_weight.csv")]
    )


def test_weights_are_those_of_the_enhanced_labels(home):
    assert main.main(arguments(home)) == 0
    for kind in ("type1", "type2", "type1_2"):
        enhanced = Datafile.read(home / f"train_{kind}_mean.json", VOCABULARY)
        weights = np.loadtxt(home / f"train_{kind}_mean_weight.csv")
        np.testing.assert_array_equal(weights, enhanced.clip_weights())


def test_one_call_writes_the_requested_thresholds_and_types(home):
    thresholds = ["mean", "median", "25", "10", "5"]
    assert main.main(arguments(home, "--threshold", *thresholds, "--out", str(home / "out"))) == 0
    assert len(list((home / "out").glob("*.json"))) == 15
    for name in thresholds:
        assert main.main(arguments(home, "--threshold", name, "--type", "type1_2", "--out", str(home / name))) == 0
        assert [path.name for path in (home / name).glob("*.json")] == [f"train_type1_2_{name}.json"]
        one, other = (path / f"train_type1_2_{name}.json" for path in (home / name, home / "out"))
        assert one.read_bytes() == other.read_bytes()


def test_relative_paths_become_absolute_in_another_folder(home):
    assert main.main(arguments(home, "--out", str(home / "deep" / "out"))) == 0
    enhanced = clips(home / "deep" / "out" / "train_type1_2_mean.json")
    assert enhanced == [(str(home / "audio" / f"{i}.wav"), mids) for i, mids in enumerate(MERGED)]


def test_the_table_has_every_class(home):
    assert main.main(arguments(home)) == 0
    with open(home / "train_added_mean.csv", newline="") as file:
        rows = {row["mid"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(VOCABULARY.mids)
    assert rows["/m/animal"] == {
        "index": "2", "mid": "/m/animal", "display_name": "Animal", "clips": "2", "scored": "2", "threshold": "0.75",
        "type1": "0", "type2": "2", "type1_2": "2",
    }  # fmt: skip
    assert [row["threshold"] for row in rows.values()] == ["0.5", "0.75", "0.75", "0.625", "0.5", "0.5", ""]
    assert [row["type1_2"] for row in rows.values()] == ["0", "1", "2", "1", "0", "0", "0"]


def test_the_summary(home, capsys):
    save(home, SCORES, clips=(3, 1, 0, 2))
    assert main.main(arguments(home)) == 0
    shown = capsys.readouterr().out
    assert "scores of 4 of 5 clips, matched 4 by path" in shown
    assert f"no scores, labels unchanged: 1 clips, such as {home / 'audio' / '4.wav'}" in shown
    assert "4 of 7 classes, such as /m/sound, have no clip with scores, so they have no threshold and are" in shown
    assert "1 of 7 classes, such as /m/sound, are excluded as abstract: their labels add nothing" in shown
    assert "1 of 7 classes, such as /m/alien, are not in the ontology: they add nothing and are not added" in shown
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["before", "9", "", "", "3", "2"] in rows
    assert ["type2_mean", "11", "2 (22.2%)", "1", "2", "2"] in rows
    assert ["Dog", "2", "0", "1", "1", "0.75"] in rows


def test_existing_files_are_not_replaced_without_force(home, capsys):
    for name in ("train_type2_mean.json", "train_type1_mean_weight.csv", "train_added_mean.csv"):
        (home / name).write_text("years of work")
        error = error_message(capsys, arguments(home))
        assert f"{home / name} would be overwritten" in error
        assert error.endswith("or replace with --force.\n")
        assert not (home / "train_type1_mean.json").exists()
        (home / name).unlink()
    (home / "train_type2_mean.json").write_text("years of work")
    (home / "train_type1_mean.json").write_text("years of work")
    assert "and 1 more" in error_message(capsys, arguments(home))
    assert main.main(arguments(home, "--force")) == 0
    assert len(clips(home / "train_type2_mean.json")) == 5


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_an_interrupted_run_leaves_complete_files_and_no_weights_of_other_labels(home, monkeypatch, stop_at):
    """Interrupts at the start of one of the six datafiles and weights; results for other labels exist."""
    before = {path.name for path in home.iterdir()}
    for kind in ("type1", "type2", "type1_2"):
        datafile.write(home / f"train_{kind}_mean.json", [("other.wav", ["/m/cat"])])
        (home / f"train_{kind}_mean_weight.csv").write_text("1\n")
    opened, atomic_text = [], datafile.atomic_text

    def interrupted(path):
        if len(opened) == stop_at:
            raise KeyboardInterrupt
        opened.append(path)
        return atomic_text(path)

    monkeypatch.setattr(datafile, "atomic_text", interrupted)
    assert main.main(arguments(home, "--force")) == 130
    assert not [path for path in home.iterdir() if path.name.startswith(".")]
    for path in sorted(home.glob("train_*.json")):
        records = clips(path)
        assert len(records) in (1, 5)
        weights = Path(datafile.weight_path(path))
        assert not weights.exists() or len(np.loadtxt(weights, ndmin=1)) == len(records)
    assert before <= {path.name for path in home.iterdir()}


MISTAKES = {
    "cycle": (
        lambda home: write_ontology(home, ONTOLOGY | {"/m/bark": (["/m/animal"], [])}),
        "is its own ancestor in the ontology",
    ),
    "no ontology": (lambda home: (home / "ontology.json").unlink(), "ontology.json cannot be read"),
    "NaN": (lambda home: save(home, np.where(SCORES == 0.25, np.nan, SCORES)), "the score nan for /m/bark of"),
    "other classes": (lambda home: save(home, SCORES[:, :6]), "scores of 6 classes, and the label file has 7"),
    "no scores": (lambda home: (home / "scores.npz").unlink(), "there are no scores at"),
    "one clip twice in the scores": (lambda home: save(home, SCORES, (0, 1, 0)), "clips 0 and 2 of"),
    "one clip twice": (
        lambda home: datafile.write(home / "train.json", [("a.wav", ["/m/cat"]), ("a.wav", ["/m/dog"])]),
        "clips 0 and 1 of",
    ),
    "unknown label": (
        lambda home: datafile.write(home / "train.json", [("a.wav", ["/m/cow"])]),
        "has the label '/m/cow'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_input_is_an_error_of_one_sentence_and_nothing_is_written(home, capsys, mistake):
    corrupt, message = MISTAKES[mistake]
    corrupt(home)
    before = sorted(home.iterdir())
    assert message in error_message(capsys, arguments(home))
    assert sorted(home.iterdir()) == before


def test_the_demo_needs_an_output_folder(home, capsys):
    command = ["enhance", "demo:train", *arguments(home)[2:]]
    assert "name the folder for the results with --out DIR" in error_message(capsys, command)


def test_a_csv_without_ids_is_used_in_order_with_a_note(home, capsys):
    np.savetxt(home / "predictions.csv", SCORES, delimiter=",")
    assert main.main(arguments(home, "--scores", str(home / "predictions.csv"))) == 0
    assert "row i is assumed to belong to clip i" in capsys.readouterr().out
    assert [mids for _, mids in clips(home / "train_type1_2_mean.json")] == MERGED


def test_segments_of_one_recording_are_enhanced_by_their_own_scores(home):
    times = [(0.5 * i, 0.5 * i + 0.25) for i in range(len(CLIPS))]
    records = [Record("audio/long.wav", mids, *time) for mids, time in zip(CLIPS, times)]
    datafile.write(home / "train.json", records)
    data = Datafile.read(home / "train.json", VOCABULARY)
    order = [3, 1, 4, 0, 2]
    np.savez(home / "scores.npz", clips=np.array([data.clip_id(i) for i in order]), scores=SCORES[order])
    assert main.main(arguments(home)) == 0
    enhanced = list(datafile.records(home / "train_type1_2_mean.json"))
    assert [",".join(record.mids) for record in enhanced] == MERGED
    assert [(record.wav, record.start, record.end) for record in enhanced] == [("audio/long.wav", *t) for t in times]
