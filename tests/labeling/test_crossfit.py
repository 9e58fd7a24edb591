"""psla crossfit: every clip is scored by a model not trained on it, and an interrupted cross-fit can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sounds
import starting

from psla_jax.cli import main
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.scores import Scores
from psla_jax.labeling import crossfit
from psla_jax.labeling.crossfit import CrossfitError, assign_folds
from psla_jax.training import loop
from psla_jax.vocabulary.vocabulary import Vocabulary

CLIPS = sounds.SIZES["train"]
ENHANCED = tuple(f"train_{kind}_mean.json" for kind in ("type1", "type2", "type1_2"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Writes a data set and an ontology in which low tones are a kind of noise, so that there are labels to add."""
    home = tmp_path_factory.mktemp("crossfit")
    sounds.make(home / "data")
    children = {"/t/noise": ["/t/low"]}
    entries = [
        {"id": mid, "name": mid, "child_ids": children.get(mid, []), "restrictions": []}
        for mid in sounds.VOCABULARY.mids
    ]
    (home / "ontology.json").write_text(json.dumps(entries))
    return home


CONFIG = """
from pathlib import Path
import sounds
config = sounds.config(Path({data!r}), Path({run!r}))
"""
SHORT = ["--optimizer.epochs", "1", "--aggregation.first", "1", "--aggregation.last", "1"]


def arguments(data: Path, home: Path, *more: str) -> list[str]:
    (home / "config.py").write_text(CONFIG.format(data=str(data / "data"), run=str(home / "run")))
    options = ["--ontology", str(data / "ontology.json"), "--folds", "2", "--out", str(home / "out")]
    return ["crossfit", str(home / "config.py"), *options, *SHORT, *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    assert main.main(arguments(data, home)) == 0
    return home


def load_scores(home: Path) -> Scores:
    return Scores.load(home / "run-crossfit" / crossfit.SCORES_FILE)


def error_message(capsys: pytest.CaptureFixture, command: list[str]) -> str:
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    assert error.count("\n") == 1
    return error


def paths(file: Path) -> list[str]:
    return [wav for wav, _ in datafile.records(file)]


def test_every_clip_is_scored_once_by_a_model_not_trained_on_it(data, finished):
    scores = load_scores(finished)
    train = Datafile.read(data / "data" / "train.json", sounds.VOCABULARY)
    assert scores.clips.tolist() == [train.wav(i) for i in range(CLIPS)]
    np.testing.assert_array_equal(scores.labels, [train.multi_hot(i) for i in range(CLIPS)])
    assert scores.mids == sounds.VOCABULARY.mids
    row_of_clip = {clip: row for row, clip in enumerate(scores.clips.tolist())}
    scored = []
    for fold in ("fold_1", "fold_2"):
        directory = finished / "run-crossfit"
        held_out, trained_on = (paths(directory / f"{fold}_{part}.json") for part in ("held_out", "train"))
        assert sorted(held_out + trained_on) == sorted(scores.clips.tolist())
        identity = json.loads((directory / fold / "data.json").read_text())
        assert identity["train"]["clips"] == len(trained_on)
        assert identity["validation"]["clips"] == sounds.SIZES["validation"]
        fold_scores = Scores.load(directory / fold / "scores" / "evaluation_ensemble.npz")
        assert fold_scores.clips.tolist() == held_out
        np.testing.assert_array_equal(scores.scores[[row_of_clip[clip] for clip in held_out]], fold_scores.scores)
        scored += held_out
    assert sorted(scored) == sorted(scores.clips.tolist())


def test_the_training_set_is_enhanced_with_these_scores(data, finished):
    for name in ENHANCED:
        assert paths(finished / "out" / name) == paths(data / "data" / "train.json")
    enhanced = dict(datafile.records(finished / "out" / ENHANCED[-1]))
    scores = load_scores(finished)
    noise, low = (scores.labels[:, i] == 1 for i in (2, 0))
    limits = [scores.scores[low, 0].astype(np.float64).mean(), scores.scores[noise, 2].astype(np.float64).mean()]
    for row, clip in enumerate(scores.clips.tolist()):
        expected = {sounds.VOCABULARY.mids[i] for i in np.flatnonzero(scores.labels[row])}
        expected |= {"/t/low"} if noise[row] and scores.scores[row, 0] > limits[0] else set()
        expected |= {"/t/noise"} if low[row] and scores.scores[row, 2] > limits[1] else set()
        assert set(enhanced[clip]) == expected


def test_enhance_accepts_a_crossfit_directory(data, finished, tmp_path, capsys):
    classes = ["--labels", str(data / "data" / "labels.csv"), "--ontology", str(data / "ontology.json")]
    run = ["--scores", str(finished / "run-crossfit"), "--out", str(tmp_path)]
    assert main.main(["enhance", str(data / "data" / "train.json"), *run, *classes]) == 0
    for name in ENHANCED:
        assert (tmp_path / name).read_bytes() == (finished / "out" / name).read_bytes()
    assert "train_crossfit.npz: scores of 26 of 26 clips, matched 26 by path" in capsys.readouterr().out


def test_existing_results_are_rejected_before_training(data, finished, capsys, monkeypatch):
    def never(config):
        raise AssertionError("trained")

    monkeypatch.setattr(loop, "train", never)
    assert "would be overwritten" in error_message(capsys, arguments(data, finished))


def test_an_interrupted_crossfit_is_resumed(data, finished, tmp_path, capsys, monkeypatch):
    train, calls = loop.train, []

    def interrupted(config):
        calls.append(config.run_dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(config)

    monkeypatch.setattr(loop, "train", interrupted)
    assert main.main(arguments(data, tmp_path)) == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(loop, "train", train)
    first = tmp_path / "run-crossfit" / "fold_1" / "models" / "epoch_001" / "model.json"
    modified = first.stat().st_mtime_ns
    assert main.main(arguments(data, tmp_path)) == 0
    assert first.stat().st_mtime_ns == modified
    np.testing.assert_array_equal(load_scores(tmp_path).scores, load_scores(finished).scores)
    for name in ENHANCED:
        assert (tmp_path / "out" / name).read_bytes() == (finished / "out" / name).read_bytes()
    capsys.readouterr()
    other = arguments(data, tmp_path, "--force")
    other[other.index("--folds") + 1] = "3"
    assert "holds a cross-fit with other folds" in error_message(capsys, other)


def test_processes_share_every_fold_and_exclusive_classes_stay_so(data, tmp_path):
    """Both folds are trained in one connection of the processes; the recipe's cross-entropy comes from the datafile."""
    home = tmp_path / "home"
    home.mkdir()
    records = list(datafile.records(data / "data" / "train.json"))
    datafile.write(home / "train.json", records, exclusive=True)
    _, _, *options = arguments(data, home, "--data.train", str(home / "train.json"))
    parts = starting.start_together(home, 2, *options, command="crossfit")
    assert [part.wait(timeout=300) for part in parts] == [0, 0], (home / "out0.txt").read_text()
    for fold in ("fold_1", "fold_2"):
        assert json.loads((home / "run-crossfit" / fold / "config.json").read_text())["optimizer"]["loss"] == "ce"
        assert json.loads((home / "run-crossfit" / f"{fold}_train.json").read_text())["classes"] == "exclusive"
    np.testing.assert_allclose(load_scores(home).scores.sum(axis=1), 1, atol=1e-6)
    assert all((home / "out" / name).is_file() for name in ENHANCED)
    assert "fold" not in (home / "out1.txt").read_text()


def test_mistakes_are_reported_before_training(data, tmp_path, capsys):
    command = arguments(data, tmp_path)
    for folds, message in (
        ("1", "folds is 1: use 2 or more"),
        ("27", "folds is 27: use 2 or more, up to the 26 clips"),
    ):
        command[command.index("--folds") + 1] = folds
        assert message in error_message(capsys, command)
    command[command.index("--folds") + 1] = "2"
    (tmp_path / "run-crossfit").mkdir()
    (tmp_path / "run-crossfit" / "cat.jpg").write_bytes(b"")
    assert "holds files but no cross-fit" in error_message(capsys, command)
    command[command.index("--ontology") + 1] = str(tmp_path / "nowhere.json")
    assert "nowhere.json cannot be read" in error_message(capsys, command)
    assert "config file first" in error_message(capsys, ["crossfit", "--folds", "2"])
    assert [path.name for path in (tmp_path / "run-crossfit").iterdir()] == ["cat.jpg"]


@pytest.fixture(scope="module")
def long_tail(tmp_path_factory) -> Datafile:
    """Returns a datafile of 300 clips with a long-tailed class distribution; some clips have no label."""
    rng = np.random.default_rng(0)
    mids = tuple(f"m{i}" for i in range(12))
    rates = 0.5 / np.arange(1, 13)
    file = tmp_path_factory.mktemp("long_tail") / "long_tail.json"
    datafile.write(file, [(f"{i}.wav", [m for m, p in zip(mids, rates) if rng.random() < p]) for i in range(300)])
    return Datafile.read(file, Vocabulary(mids, mids))


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_even_in_size_and_in_every_class(long_tail, folds):
    fold_of = assign_folds(long_tail, folds, seed=0)
    hot = np.array([long_tail.multi_hot(i) for i in range(300)])
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.sum() == 300
    assert sizes.max() - sizes.min() <= 10
    for column in hot.T:
        counts = np.bincount(fold_of, weights=column, minlength=folds)
        assert counts.max() - counts.min() <= max(2, 0.15 * column.sum())
        assert counts.min() >= 1
    np.testing.assert_array_equal(fold_of, assign_folds(long_tail, folds, seed=0))
    assert np.any(fold_of != assign_folds(long_tail, folds, seed=1))


def test_an_invalid_number_of_folds_is_rejected(long_tail):
    for folds in (-1, 0, 1, 301):
        with pytest.raises(CrossfitError, match=f"folds is {folds}: use 2 or more"):
            assign_folds(long_tail, folds, seed=0)
    assert sorted(assign_folds(long_tail, 300, seed=0)) == list(range(300))
