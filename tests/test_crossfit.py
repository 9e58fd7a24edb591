"""psla crossfit: every clip is scored by a model that has not seen it, and a run that was cut short goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sounds

from psla_jax import cli, crossfit, experiment
from psla_jax.crossfit import CrossfitError, assign_folds
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Vocabulary
from psla_jax.scores import Scores

CLIPS = sounds.SIZES["train"]
ENHANCED = tuple(f"train_{kind}_mean.json" for kind in ("type1", "type2", "type1_2"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Low tones are a kind of noise here, so that there is something to add."""
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
    given = ["--ontology", str(data / "ontology.json"), "--folds", "2", "--out", str(home / "out")]
    return ["crossfit", str(home / "config.py"), *given, *SHORT, *more]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    assert cli.main(arguments(data, home)) == 0
    return home


def scores_of(home: Path) -> Scores:
    return Scores.load(home / "run-crossfit" / crossfit.SCORES)


def complaint(capsys: pytest.CaptureFixture, given: list[str]) -> str:
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    assert error.count("\n") == 1
    return error


def paths(file: Path) -> list[str]:
    return [wav for wav, _ in datafile.records(file)]


def test_every_clip_is_scored_once_by_a_model_that_has_not_seen_it(data, whole):
    together = scores_of(whole)
    train = Datafile.read(data / "data" / "train.json", sounds.VOCABULARY)
    assert together.clips.tolist() == [train.wav(i) for i in range(CLIPS)]
    np.testing.assert_array_equal(together.labels, [train.multi_hot(i) for i in range(CLIPS)])
    assert together.mids == sounds.VOCABULARY.mids
    place = {clip: row for row, clip in enumerate(together.clips.tolist())}
    seen = []
    for fold in ("fold_1", "fold_2"):
        directory = whole / "run-crossfit"
        held_out, trained_on = (paths(directory / f"{fold}_{part}.json") for part in ("held_out", "train"))
        assert sorted(held_out + trained_on) == sorted(together.clips.tolist())
        identity = json.loads((directory / fold / "data.json").read_text())
        assert identity["train"]["clips"] == len(trained_on)
        assert identity["validation"]["clips"] == sounds.SIZES["validation"]
        own = Scores.load(directory / fold / "scores" / "evaluation_ensemble.npz")
        assert own.clips.tolist() == held_out
        np.testing.assert_array_equal(together.scores[[place[clip] for clip in held_out]], own.scores)
        seen += held_out
    assert sorted(seen) == sorted(together.clips.tolist())


def test_the_scores_then_enhance_the_training_set(data, whole):
    for name in ENHANCED:
        assert paths(whole / "out" / name) == paths(data / "data" / "train.json")
    enhanced = dict(datafile.records(whole / "out" / ENHANCED[-1]))
    together = scores_of(whole)
    noise, low = (together.labels[:, i] == 1 for i in (2, 0))
    limits = [together.scores[low, 0].astype(np.float64).mean(), together.scores[noise, 2].astype(np.float64).mean()]
    for row, clip in enumerate(together.clips.tolist()):
        wanted = {sounds.VOCABULARY.mids[i] for i in np.flatnonzero(together.labels[row])}
        wanted |= {"/t/low"} if noise[row] and together.scores[row, 0] > limits[0] else set()
        wanted |= {"/t/noise"} if low[row] and together.scores[row, 2] > limits[1] else set()
        assert set(enhanced[clip]) == wanted


def test_enhance_takes_the_directory_of_a_crossfit(data, whole, tmp_path, capsys):
    given = ["--labels", str(data / "data" / "labels.csv"), "--ontology", str(data / "ontology.json")]
    run = ["--scores", str(whole / "run-crossfit"), "--out", str(tmp_path)]
    assert cli.main(["enhance", str(data / "data" / "train.json"), *run, *given]) == 0
    for name in ENHANCED:
        assert (tmp_path / name).read_bytes() == (whole / "out" / name).read_bytes()
    assert "train_crossfit.npz: scores of 26 of 26 clips, matched 26 by path" in capsys.readouterr().out


def test_results_that_are_there_are_refused_before_anything_is_trained(data, whole, capsys, monkeypatch):
    def never(config):
        raise AssertionError("trained")

    monkeypatch.setattr(experiment, "train", never)
    assert "would be overwritten" in complaint(capsys, arguments(data, whole))


def test_a_crossfit_that_was_cut_short_goes_on(data, whole, tmp_path, capsys, monkeypatch):
    train, calls = experiment.train, []

    def interrupted(config):
        calls.append(config.run_dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(config)

    monkeypatch.setattr(experiment, "train", interrupted)
    assert cli.main(arguments(data, tmp_path)) == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(experiment, "train", train)
    first = tmp_path / "run-crossfit" / "fold_1" / "models" / "epoch_001" / "model.json"
    made = first.stat().st_mtime_ns
    assert cli.main(arguments(data, tmp_path)) == 0
    assert first.stat().st_mtime_ns == made
    np.testing.assert_array_equal(scores_of(tmp_path).scores, scores_of(whole).scores)
    for name in ENHANCED:
        assert (tmp_path / "out" / name).read_bytes() == (whole / "out" / name).read_bytes()
    capsys.readouterr()
    other = arguments(data, tmp_path, "--force", "True")
    other[other.index("--folds") + 1] = "3"
    assert "holds a cross-fit of other folds" in complaint(capsys, other)


def test_mistakes_are_named_before_anything_is_trained(data, tmp_path, capsys):
    given = arguments(data, tmp_path)
    for folds, named in (("1", "folds is 1: use 2 or more"), ("27", "folds is 27: use 2 or more, up to the 26 clips")):
        given[given.index("--folds") + 1] = folds
        assert named in complaint(capsys, given)
    given[given.index("--folds") + 1] = "2"
    (tmp_path / "run-crossfit").mkdir()
    (tmp_path / "run-crossfit" / "cat.jpg").write_bytes(b"")
    assert "holds files but no cross-fit" in complaint(capsys, given)
    given[given.index("--ontology") + 1] = str(tmp_path / "nowhere.json")
    assert "nowhere.json cannot be read" in complaint(capsys, given)
    assert "config file first" in complaint(capsys, ["crossfit", "--folds", "2"])
    assert [path.name for path in (tmp_path / "run-crossfit").iterdir()] == ["cat.jpg"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Datafile:
    """300 clips with a long tail of classes; some clips have none."""
    rng = np.random.default_rng(0)
    mids = tuple(f"m{i}" for i in range(12))
    rates = 0.5 / np.arange(1, 13)
    file = tmp_path_factory.mktemp("many") / "many.json"
    datafile.write(file, [(f"{i}.wav", [m for m, p in zip(mids, rates) if rng.random() < p]) for i in range(300)])
    return Datafile.read(file, Vocabulary(mids, mids))


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_even_in_size_and_in_every_class(many, folds):
    fold_of = assign_folds(many, folds, seed=0)
    hot = np.array([many.multi_hot(i) for i in range(300)])
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.sum() == 300
    assert sizes.max() - sizes.min() <= 10
    for column in hot.T:
        counts = np.bincount(fold_of, weights=column, minlength=folds)
        assert counts.max() - counts.min() <= max(2, 0.15 * column.sum())
        assert counts.min() >= 1
    np.testing.assert_array_equal(fold_of, assign_folds(many, folds, seed=0))
    assert np.any(fold_of != assign_folds(many, folds, seed=1))


def test_a_number_of_folds_that_makes_no_sense_is_refused(many):
    for folds in (-1, 0, 1, 301):
        with pytest.raises(CrossfitError, match=f"folds is {folds}: use 2 or more"):
            assign_folds(many, folds, seed=0)
    assert sorted(assign_folds(many, 300, seed=0)) == list(range(300))
