"""psla crossval: every clip is evaluated once by a model not trained on it, and mean and spread over the folds."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import sounds
import starting

from psla_jax.cli import main
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.scores import Scores
from psla_jax.training import loop
from psla_jax.training.crossval import Estimate

FOLDS = ("fold_1", "fold_2", "fold_3")
CONFIG = """
import dataclasses, pathlib, sounds
from psla_jax.config import AggregationConfig, OptimizerConfig
config = sounds.config(
    pathlib.Path({data!r}), pathlib.Path({run!r}),
    optimizer=OptimizerConfig(learning_rate=1e-2, epochs=2, warmup_steps=0),
    aggregation=AggregationConfig(first=1, last=2),
)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set with three folds of exclusive classes; fold 3 has relative paths."""
    directory = sounds.make(tmp_path_factory.mktemp("crossval") / "data", train=24)
    clips = list(datafile.records(directory / "train.json"))
    (directory / "folds").mkdir()
    for number, name in enumerate(FOLDS):
        fold = clips[8 * number : 8 * number + 8]
        if name == "fold_3":
            fold = [clip._replace(wav=f"../{Path(clip.wav).name}") for clip in fold]
        datafile.write(directory / "folds" / f"{name}.json", fold, exclusive=True)
    return directory


def arguments(data: Path, home: Path, *more: str) -> list[str]:
    (home / "config.py").write_text(CONFIG.format(data=str(data), run=str(home / "run")))
    return ["crossval", str(home / "config.py"), *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """Directory of a finished cross-validation."""
    home = tmp_path_factory.mktemp("finished")
    assert main.main(arguments(data, home)) == 0
    return home / "run-crossval"


def paths(file: Path) -> set[str]:
    read = Datafile.read(file, sounds.VOCABULARY)
    return {str(Path(read.wav(i)).resolve()) for i in range(len(read))}


def test_every_clip_is_evaluated_once_by_a_model_not_trained_on_it(data, finished):
    everything = paths(data / "train.json")
    evaluated = []
    for name in FOLDS:
        train = Datafile.read(finished / f"{name}_train.json", sounds.VOCABULARY)
        assert train.exclusive
        held_out = paths(data / "folds" / f"{name}.json")
        assert paths(finished / f"{name}_train.json") == everything - held_out
        scores = Scores.load(finished / name / "scores" / "evaluation_average.npz")
        assert {str(Path(clip).resolve()) for clip in scores.clips} == held_out
        evaluated += held_out
        config = json.loads((finished / name / "config.json").read_text())
        assert (config["optimizer"]["loss"], config["data"]["validation"]) == ("ce", "")
    assert sorted(evaluated) == sorted(everything)


def test_the_summary_has_mean_and_sample_standard_deviation_and_no_selected_epoch(finished):
    with open(finished / "crossval.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((finished / "crossval.json").read_text())
    models = {
        "single (mean of epochs 1-2)": None,
        "weight average (epochs 1-2), statistics re-estimated": "average",
        "weight average (epochs 1-2), plain": "plain_average",
        "checkpoint ensemble (2 epochs)": "ensemble",
    }
    assert list(summary["models"]) == list(models)
    assert summary["folds"] == list(FOLDS)
    assert summary["spread"] == "sample standard deviation over the folds"
    assert [(row["model"], row["fold"]) for row in rows] == [
        (model, fold) for model in models for fold in (*FOLDS, "mean", "std")
    ]
    for model, stem in list(models.items())[1:]:
        measured = [Scores.load(finished / f / "scores" / f"evaluation_{stem}.npz").metrics() for f in FOLDS]
        table = {row["fold"]: row for row in rows if row["model"] == model}
        assert [table[fold]["num_clips"] for fold in (*FOLDS, "mean")] == ["8", "8", "8", ""]
        for metric in ("accuracy", "mAP", "mAUC"):
            values = [getattr(each, metric) for each in measured]
            expected = [*values, np.mean(values), np.std(values, ddof=1)]
            assert [float(table[f][metric]) for f in (*FOLDS, "mean", "std")] == pytest.approx(expected, rel=1e-6)
            entry = summary["models"][model][metric]
            assert [*entry["folds"], entry["mean"], entry["std"]] == pytest.approx(expected, rel=1e-12)


def test_an_interrupted_crossval_is_resumed_without_training_a_finished_fold_again(
    data, finished, tmp_path, monkeypatch, capsys
):
    train, calls = loop.train, []

    def interrupted(config, **options):
        calls.append(config.run_dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(config, **options)

    monkeypatch.setattr(loop, "train", interrupted)
    assert main.main(arguments(data, tmp_path)) == 130
    assert not (tmp_path / "run-crossval" / "crossval.csv").exists()
    monkeypatch.setattr(loop, "train", train)
    first = tmp_path / "run-crossval" / "fold_1" / "models" / "epoch_001" / "model.json"
    modified = first.stat().st_mtime_ns
    capsys.readouterr()
    assert main.main(arguments(data, tmp_path)) == 0
    shown = capsys.readouterr().out
    assert first.stat().st_mtime_ns == modified
    for name in ("crossval.csv", "crossval.json"):
        assert (tmp_path / "run-crossval" / name).read_bytes() == (finished / name).read_bytes()
    assert "data.validation is not used: every fold is trained on all clips of the other folds" in shown
    assert "fold_3, 3 of 3: 16 clips to train on, 8 to evaluate on" in shown
    average = json.loads((finished / "crossval.json").read_text())["models"]
    accuracy = average["weight average (epochs 1-2), statistics re-estimated"]["accuracy"]
    assert f"{accuracy['mean']:.4f} +- {accuracy['std']:.4f}" in shown
    assert "3 folds, 24 clips; mean +- sample standard deviation over the folds" in shown
    assert "only 3 of 4 classes" in shown
    assert "Nothing is selected on a fold" in shown


def test_weights_that_may_know_the_folds_are_named(data, tmp_path, capsys, monkeypatch):
    def stop(config, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stop)
    assert main.main(arguments(data, tmp_path, "--pretraining.source", "runs/other")) == 130
    assert (
        "start from runs/other: results are too good if it was trained on clips of the folds" in capsys.readouterr().out
    )


def test_processes_share_every_fold(data, tmp_path):
    short = ["--optimizer.epochs", "1", "--aggregation.last", "1"]
    folds = [str(data / "folds" / f"{name}.json") for name in FOLDS[:2]]
    _, _, *options = arguments(data, tmp_path, *short, "--folds", *folds)
    parts = starting.start_together(tmp_path, 2, *options, command="crossval")
    assert [part.wait(timeout=300) for part in parts] == [0, 0], (tmp_path / "out0.txt").read_text()
    summary = json.loads((tmp_path / "run-crossval" / "crossval.json").read_text())
    ensemble = summary["models"]["checkpoint ensemble (1 epoch)"]["accuracy"]
    scores = [tmp_path / "run-crossval" / name / "scores" / "evaluation_ensemble.npz" for name in FOLDS[:2]]
    assert ensemble["folds"] == [Scores.load(path).metrics().accuracy for path in scores]
    assert ensemble["mean"] == pytest.approx(np.mean(ensemble["folds"]))
    assert "fold" not in (tmp_path / "out1.txt").read_text()


def complaint(capsys: pytest.CaptureFixture, command: list[str]) -> str:
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    assert error.count("\n") == 1
    return error


def test_unusable_folds_are_rejected_before_training(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    first, second, third = (str(data / "folds" / f"{name}.json") for name in FOLDS)
    assert "fold_1.json is a single fold" in complaint(capsys, arguments(data, tmp_path, "--folds", first))
    clips = list(datafile.records(first))
    datafile.write(tmp_path / "fold_9.json", clips[:1], exclusive=True)
    twice = complaint(capsys, arguments(data, tmp_path, "--folds", first, second, str(tmp_path / "fold_9.json")))
    assert "a clip is in two folds" in twice
    assert clips[0][0] in twice
    absolute = [clip._replace(wav=Path(first).parent.joinpath(clip.wav).as_posix()) for clip in clips]
    datafile.write(tmp_path / "fold_9.json", absolute)
    mixed = complaint(capsys, arguments(data, tmp_path, "--folds", str(tmp_path / "fold_9.json"), second, third))
    assert 'fold_9.json does not declare "classes": "exclusive"' in mixed
    (tmp_path / "fold_1.json").write_bytes(Path(second).read_bytes())
    assert "same file name" in complaint(capsys, arguments(data, tmp_path, "--folds", first, f"{tmp_path}/fold_1.json"))
    empty = sounds.make(tmp_path / "empty", train=3, validation=1, evaluation=1)
    assert "folds holds 0 folds: write two or more with psla prepare" in complaint(capsys, arguments(empty, tmp_path))
    stopping = complaint(capsys, arguments(data, tmp_path, "--optimizer.patience", "3"))
    assert (
        "optimizer.patience is 3: without a validation set, training would end by the results on the fold" in stopping
    )
    assert "config as its first argument" in complaint(capsys, ["crossval", "--seed", "1"])


@pytest.mark.parametrize(("values", "std"), [([0.0, 1.0], math.sqrt(0.5)), ([math.inf, 1.0], math.nan)])
def test_the_spread_of_an_infinite_metric_is_undefined(values, std):
    assert Estimate.of(values).mean == np.mean(values)
    assert Estimate.of(values).std == pytest.approx(std, nan_ok=True)
