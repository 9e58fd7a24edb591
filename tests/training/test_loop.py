"""Runs from datafiles to the summary: their files, exact resumption, and errors."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import sounds
import trackers
from flax import nnx
from tolerance import assert_close, assert_trees_close

import psla_jax
from psla_jax.audio.windows import WindowError
from psla_jax.config import (
    AggregationConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
)
from psla_jax.data import datasets
from psla_jax.data.datasets import DataError
from psla_jax.evaluation.evaluators import Evaluators
from psla_jax.evaluation.predict import Scores
from psla_jax.models.factory import from_config
from psla_jax.models.model_dir import CheckpointError, ModelCard, load_model, read_card, save_model
from psla_jax.models.state import split_model
from psla_jax.runtime.preemption import Stopped
from psla_jax.training import loop
from psla_jax.training.artifacts import RunArtifacts
from psla_jax.training.checkpointing import RunCheckpoints
from psla_jax.training.monitor import TrainingError, TrainingMonitor
from psla_jax.training.run_directory import RunError

RESULTS = ("result.csv", "best_single_result.csv", "wa_result.csv", "wa_plain_result.csv", "ensemble_result.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sounds.make(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """An uninterrupted run; the others are compared with it."""
    config = sounds.config(data, tmp_path_factory.mktemp("runs") / "whole")
    return config, loop.train(config)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_results(one: Path, other: Path) -> None:
    for name in (*RESULTS, "summary.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for model in ("epoch_003", "average", "best"):
        trees = [split_model(load_model(d / "models" / model, trust=True).network) for d in (one, other)]
        jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_run_leaves_the_references_tables(whole_run):
    config, _ = whole_run
    directory = Path(config.run_dir)
    rows = table(directory / "result.csv")
    assert list(rows[0]) == [
        "epoch",
        "mAP",
        "mAUC",
        "precision",
        "recall",
        "d_prime",
        "train_loss",
        "valid_loss",
        "ensemble_mAP",
        "ensemble_mAUC",
        "learning_rate",
        "accuracy",
    ]  # fmt: skip - the last one because every clip has exactly one label
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-2, 1e-2, 5e-3])
    for name in RESULTS[1:]:
        assert list(table(directory / name)[0]) == [
            "validation_mAP", "validation_mAUC", "validation_accuracy",
            "evaluation_mAP", "evaluation_mAUC", "evaluation_accuracy",
        ]  # fmt: skip
    assert table(directory / "best_single_result.csv")[0]["validation_mAP"] == max(row["mAP"] for row in rows)


def test_the_figures_are_those_of_the_scores(whole_run):
    config, measured = whole_run
    directory = Path(config.run_dir)
    per_epoch = [Scores.load(directory / "scores" / f"evaluation_epoch_{e:03d}.npz") for e in (1, 2, 3)]
    combined = Scores.load(directory / "scores" / "evaluation_ensemble.npz")
    assert_close(combined.scores, np.mean([s.scores for s in per_epoch], axis=0), 1e-6)
    assert measured[-1].sets["evaluation"].mAP == combined.metrics().mAP
    assert combined.clips.tolist() == [
        str(p) for p in sorted(Path(config.data.evaluation).parent.glob("evaluation*.wav"))
    ]
    metrics = measured[0].sets["evaluation"]
    assert (metrics.num_classes, metrics.num_scored) == (4, 3)
    low, high = measured[0].intervals["evaluation"].low, measured[0].intervals["evaluation"].high
    assert low <= metrics.mAP <= high


def test_every_row_of_the_summary_has_its_results_per_class(whole_run):
    config, measured = whole_run
    directory = Path(config.run_dir)
    stems = ("best", "average", "plain_average", "ensemble")
    files = {f"{kind}_{stem}.csv" for kind in ("validation", "evaluation") for stem in stems}
    assert {path.name for path in (directory / "per_class").iterdir()} == files
    assert {path.name for path in (directory / "confusion").iterdir()} == files
    for stem, row in zip(stems, measured):
        rows = table(directory / "per_class" / f"evaluation_{stem}.csv")
        assert [each["class"] for each in rows] == list(sounds.VOCABULARY.names)
        assert [each["positives"] for each in rows] == ["4", "4", "3", "0"]
        assert rows[3]["AP"] == ""
        assert np.mean([float(each["AP"]) for each in rows[:3]]) == pytest.approx(row.sets["evaluation"].mAP)
        confusion = table(directory / "confusion" / f"evaluation_{stem}.csv")
        right = sum(int(each[each["true class"]]) for each in confusion)
        assert right / 11 == pytest.approx(row.sets["evaluation"].accuracy)


def test_the_weight_average_is_the_mean_of_its_epochs_with_statistics_of_its_own(whole_run):
    models = Path(whole_run[0].run_dir) / "models"
    trees = {
        name: split_model(load_model(models / name, trust=True).network)
        for name in ("epoch_002", "epoch_003", "average", "plain_average")
    }
    mean = jax.tree.map(lambda a, b: (np.float64(a) + b) / 2, trees["epoch_002"], trees["epoch_003"])
    assert_trees_close(trees["plain_average"], mean, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, trees["average"][0], trees["plain_average"][0])
    assert np.any(trees["average"][1]["norm"]["mean"] != trees["plain_average"][1]["norm"]["mean"])


def test_the_run_directory_stands_for_its_average(whole_run):
    model = load_model(whole_run[0].run_dir, trust=True)
    assert model.card.notes["epochs"] == [2, 3]
    assert model.card.notes["statistics"] == "re-estimated"
    assert model.card.vocabulary == sounds.VOCABULARY
    assert model.frontend.target_length == 40


def test_sound_beyond_a_window_is_reported_once_and_scored_on_request(tmp_path, capsys):
    """The held-out clips last 0.9 to 1.8 s, a window 0.415 s."""
    data = sounds.make(tmp_path / "sounds", train=9, validation=6, evaluation=5)
    for clip in (*data.glob("validation*.wav"), *data.glob("evaluation*.wav")):
        samples, rate = soundfile.read(clip)
        soundfile.write(clip, np.tile(samples, 3), rate)
    config = sounds.config(data, tmp_path / "beginning")
    loop.train(config)
    shown = capsys.readouterr().out
    notes = re.findall(r"(\w+) set: clips longer than a window of the model: (\d+ of \d+)", shown)
    assert notes == [("validation", "6 of 6"), ("evaluation", "5 of 5")]
    windows = dataclasses.replace(config.data, windows=True)
    loop.train(dataclasses.replace(config, run_dir=str(tmp_path / "windows"), data=windows))
    assert "longer than a window" not in capsys.readouterr().out
    scores = [Scores.load(tmp_path / run / "scores" / "evaluation_epoch_001.npz") for run in ("beginning", "windows")]
    assert scores[0].clips.tolist() == scores[1].clips.tolist()
    np.testing.assert_array_equal(scores[0].labels, scores[1].labels)
    assert np.abs(scores[1].scores - scores[0].scores).max() > 0.01
    short = dataclasses.replace(config, frontend=FrontendConfig(target_length=12), run_dir=str(tmp_path / "short"))
    with pytest.raises(WindowError, match=r"windows of 0\.14 s are shorter than the hop of 0\.32 s"):
        loop.train(dataclasses.replace(short, data=windows))
    assert not (tmp_path / "short" / "checkpoints").exists()


def test_a_finished_run_started_again_changes_nothing(whole_run, tmp_path):
    config, measured = whole_run
    directory = Path(config.run_dir)
    before = {name: (directory / name).read_bytes() for name in (*RESULTS, "summary.json")}
    again = loop.train(config)
    assert [m.to_json() for m in again] == [m.to_json() for m in measured]
    assert before == {name: (directory / name).read_bytes() for name in before}


@pytest.mark.parametrize(("stop_at", "every"), [(2, 0), (5, 2), (9, 3)])
def test_an_interrupted_run_goes_on_exactly(whole_run, data, tmp_path, monkeypatch, stop_at, every):
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), checkpoint_every=every)
    add = TrainingMonitor.add

    def interrupted(self, step, batch, metrics):
        if step == stop_at:
            raise KeyboardInterrupt
        add(self, step, batch, metrics)

    monkeypatch.setattr(TrainingMonitor, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config)
    monkeypatch.setattr(TrainingMonitor, "add", add)
    loop.train(config)
    assert_same_results(Path(whole_run[0].run_dir), tmp_path / "run")


@pytest.fixture
def second_is_best(monkeypatch):
    """Makes the scores of the first epoch the worst and those of the second the best; yields the steps taken."""
    score, add, steps = RunArtifacts.score, TrainingMonitor.add, []

    def changed(self, kind, weights, description):
        scores = score(self, kind, weights, description)
        known = {"epoch 1": 1 - scores.labels, "epoch 2": scores.labels}
        return dataclasses.replace(scores, scores=known.get(description.split(":")[0], scores.scores))

    def counted(self, step, batch, metrics):
        steps.append(step)
        add(self, step, batch, metrics)

    monkeypatch.setattr(RunArtifacts, "score", changed)
    monkeypatch.setattr(TrainingMonitor, "add", counted)
    return steps


def test_early_stopping_ends_a_run_for_good(data, tmp_path, monkeypatch, capsys, second_is_best):
    config = sounds.config(data, tmp_path / "run")
    optimizer = dataclasses.replace(config.optimizer, epochs=10, patience=2)
    config = dataclasses.replace(config, optimizer=optimizer, aggregation=AggregationConfig(first=6, last=10))
    save_scores = RunArtifacts.save_scores

    def killed(self, kind, name, scores):
        if name == "epoch_004":
            raise KeyboardInterrupt
        save_scores(self, kind, name, scores)

    monkeypatch.setattr(RunArtifacts, "save_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config)
    monkeypatch.setattr(RunArtifacts, "save_scores", save_scores)
    measured = loop.train(config)
    assert second_is_best == list(range(16))
    assert [m.name.split(",")[0] for m in measured] == [
        "best single (epoch 2)", "weight average (epochs 3-4)", "weight average (epochs 3-4)",
        "checkpoint ensemble (4 epochs)",
    ]  # fmt: skip
    rows = table(tmp_path / "run" / "result.csv")
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3])
    assert load_model(tmp_path / "run", trust=True).card.notes["epochs"] == [3, 4]
    said = "training ended early, after epoch 4 of 10: epoch 2 is still the best (optimizer.patience is 2)"
    assert capsys.readouterr().out.count(said) == 1
    assert [m.to_json() for m in loop.train(config)] == [m.to_json() for m in measured]
    shown = capsys.readouterr().out
    assert said in shown
    assert "epochs 6-10 were to be averaged, but training ended after epoch 4: " in shown
    assert second_is_best == list(range(16))
    # With more patience, the same run goes on.
    more = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, patience=3))
    assert loop.train(more)[-1].name == "checkpoint ensemble (5 epochs)"
    assert second_is_best == list(range(20))


def test_without_a_validation_set_single_is_the_mean_of_the_last_epochs(data, tmp_path):
    config = sounds.config(data, tmp_path / "run")
    fields = dataclasses.replace(config.data, validation="")
    measured = loop.train(
        dataclasses.replace(config, data=fields, aggregation=AggregationConfig(first=2, last=3, reestimate=False))
    )
    rows = table(tmp_path / "run" / "result.csv")
    assert [m.name for m in measured] == [
        "single (mean of epochs 1-3)", "weight average (epochs 2-3)", "checkpoint ensemble (3 epochs)",
    ]  # fmt: skip
    assert measured[0].sets["evaluation"].mAP == pytest.approx(np.mean([float(r["mAP"]) for r in rows]), rel=1e-6)
    assert not (tmp_path / "run" / "models" / "plain_average").exists()
    single, average = (
        table(tmp_path / "run" / "per_class" / f"evaluation_{stem}.csv") for stem in ("single", "average")
    )
    assert np.mean([float(row["AP"]) for row in single[:3]]) == pytest.approx(measured[0].sets["evaluation"].mAP)
    assert [bool(row["threshold"]) for row in (single[0], average[0])] == [False, True]
    assert list(table(tmp_path / "run" / "wa_result.csv")[0]) == [
        "evaluation_mAP",
        "evaluation_mAUC",
        "evaluation_accuracy",
    ]


def test_cross_entropy_trains_single_labels_and_refuses_others(data, tmp_path):
    config = sounds.config(data, tmp_path / "run")
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss="ce"))
    measured = loop.train(config)
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())[measured[0].name]["evaluation"]["accuracy"]
    assert accuracy == measured[0].sets["evaluation"].accuracy
    assert_scores_are_distributions(tmp_path / "run", config.data.evaluation, tmp_path / "scores.npz")
    clips = json.loads((data / "train.json").read_text())["data"]
    clips[3]["labels"] = "/t/low,/t/noise"
    (tmp_path / "two.json").write_text(json.dumps({"data": clips}))
    two = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(tmp_path / "two.json")))
    with pytest.raises(DataError, match=r"train03\.wav 2 labels, but optimizer\.loss ce requires exactly one"):
        loop.train(two)


def assert_scores_are_distributions(run: Path, data: str, path: Path) -> None:
    """Asserts that the scores of exclusive classes add up to 1 and are the same in every place."""
    model = run / "models" / "average"
    assert read_card(model).exclusive
    kept = Scores.load(run / "scores" / "evaluation_average.npz")
    np.testing.assert_allclose(kept.scores.sum(axis=1), 1, atol=1e-6)
    psla_jax.evaluate(model, data, trust=True, keep_scores=False, bootstrap=0, save=path)
    np.testing.assert_allclose(Scores.load(path).scores, kept.scores, atol=1e-6)
    tagger = psla_jax.load(model, trust=True)
    tags = [tagger.tag(clip) for clip in kept.clips]
    np.testing.assert_allclose([tag.scores.sum() for tag in tags], 1, atol=1e-6)
    single_window = [not tag.long for tag in tags]
    assert 1 < sum(single_window) < len(tags)
    whole = np.stack([tag.scores for tag in tags])[single_window]
    np.testing.assert_allclose(whole, kept.scores[single_window], atol=1e-6)


def exclusive(data: Path, folder: Path, change=lambda clips: None) -> Path:
    """The same datafiles, which say that their classes exclude each other."""
    folder.mkdir()
    shutil.copy(data / "labels.csv", folder)
    for split in sounds.SIZES:
        clips = json.loads((data / f"{split}.json").read_text())["data"]
        change(clips)
        (folder / f"{split}.json").write_text(json.dumps({"classes": "exclusive", "data": clips}))
    return folder


def test_the_loss_follows_from_what_the_data_say(data, tmp_path, capsys):
    config = sounds.config(exclusive(data, tmp_path / "data"), tmp_path / "run")
    assert config.optimizer.loss == "auto"
    measured = loop.train(config)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["optimizer"]["loss"] == "ce"
    shown = capsys.readouterr().out
    assert "the loss is cross-entropy, and the best epoch is the most accurate" in shown
    assert "accuracy" in next(line for line in shown.splitlines() if line.startswith("epoch 1/3"))
    rows = table(tmp_path / "run" / "result.csv")
    for row in rows:
        scores = Scores.load(tmp_path / "run" / "scores" / f"validation_epoch_{int(row['epoch']):03d}.npz")
        right = np.argmax(scores.scores, axis=1) == np.argmax(scores.labels, axis=1)
        assert float(row["accuracy"]) == pytest.approx(right.mean())
    # It goes on with either name of the loss, and not with another one.
    for loss in ("auto", "ce"):
        again = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss=loss))
        assert [m.to_json() for m in loop.train(again)] == [m.to_json() for m in measured]
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss="bce"))
    with pytest.raises(RunError, match=r"optimizer\.loss: 'ce' -> 'bce'"):
        loop.train(other)
    # The most accurate epoch is the best one, mAP decides among equals.
    figures = [("0.5", "0.9"), ("0.8", "0.1"), ("0.8", "0.2")]
    for row, (accuracy, mean) in zip(rows, figures):
        row.update(accuracy=accuracy, mAP=mean)
    with open(tmp_path / "run" / "result.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert loop.train(config)[0].name == "best single (epoch 3)"


def test_without_a_word_of_the_data_the_loss_is_that_of_tags(whole_run):
    config, _ = whole_run
    kept = json.loads((Path(config.run_dir) / "config.json").read_text())
    assert (config.optimizer.loss, kept["optimizer"]["loss"]) == ("auto", "bce")


def test_data_that_contradict_themselves_are_refused(data, tmp_path):
    for number, labels in enumerate(("/t/low,/t/noise", "")):
        spoilt = exclusive(
            data, tmp_path / f"data{number}", lambda clips, labels=labels: clips[3].update(labels=labels)
        )
        with pytest.raises(DataError, match=r"03\.wav . labels, but .* declares its classes as exclusive.*loss bce"):
            loop.train(sounds.config(spoilt, tmp_path / "run"))


def test_a_clip_lost_during_training_is_set_aside_and_reported(tmp_path, monkeypatch):
    data = sounds.make(tmp_path / "sounds")
    check = datasets.check_clips

    def then_lose_one(*arguments):
        check(*arguments)
        (data / "train04.wav").unlink()
        (data / "evaluation03.wav").write_bytes(b"nothing")

    monkeypatch.setattr(datasets, "check_clips", then_lose_one)
    config = sounds.config(data, tmp_path / "run")
    plain = dataclasses.replace(config.sampling, balanced=False)
    measured = loop.train(dataclasses.replace(config, sampling=plain))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("set aside in this epoch") >= 3
    assert "train04.wav is missing" in log
    assert "evaluation03.wav" in log
    assert measured[0].sets["evaluation"].num_clips == sounds.SIZES["evaluation"] - 1


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the batch of the seventh step a recording of nothing but NaN."""
    fetch, calls = TrainingMonitor.fetch, []

    def spoilt(self, stream):
        batch = fetch(self, stream)
        calls.append(None)
        return {**batch, "waveform": batch["waveform"] * np.float32("nan")} if len(calls) == 7 else batch

    monkeypatch.setattr(TrainingMonitor, "fetch", spoilt)


@pytest.mark.usefixtures("poisoned")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(data, tmp_path):
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"the loss is nan.* at step 6.*nonfinite skip: .*train\d\d\.wav"):
        loop.train(config)
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) == 6
    assert len(table(tmp_path / "run" / "result.csv")) == 1


@pytest.mark.usefixtures("poisoned")
def test_a_step_that_is_not_finite_can_be_skipped_and_is_counted(data, tmp_path, capsys):
    config = sounds.config(data, tmp_path / "run")
    loop.train(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, nonfinite="skip")))
    shown = capsys.readouterr().out
    assert re.search(r"the loss is nan and the norm of the gradient nan at step 6, which is skipped; .*train", shown)
    assert "1 steps of this epoch were skipped" in shown
    assert all(np.isfinite(float(row["train_loss"])) for row in table(tmp_path / "run" / "result.csv"))


def test_parameters_that_explode_stop_the_run(data, tmp_path):
    config = sounds.config(data, tmp_path / "run")
    wild = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1e38, epochs=3, warmup_steps=0))
    with pytest.raises(TrainingError, match="the loss is nan and the norm of the gradient nan at step"):
        loop.train(wild)


def test_a_run_may_be_continued_for_more_epochs(whole_run, data, tmp_path, capsys):
    """The continued run is that of the larger number of epochs, bit for bit; average and ensemble follow."""
    config = sounds.config(data, tmp_path / "run", aggregation=AggregationConfig(first=2))
    short = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, epochs=2))
    loop.train(short)
    capsys.readouterr()
    rows = loop.train(config)
    assert "the run of 2 epochs is continued up to epoch 3\n" in capsys.readouterr().out
    assert [row.name for row in rows[1:]] == [row.name for row in whole_run[1][1:]]
    assert_same_results(tmp_path / "run", Path(whole_run[0].run_dir))
    with pytest.raises(RunError, match=r"optimizer\.epochs: 3 -> 2.*may grow.*--pretraining\.source .*run would start"):
        loop.train(short)
    # Other epochs can be averaged afterwards, without stale scores.
    last = loop.train(dataclasses.replace(config, aggregation=AggregationConfig(first=3)))
    assert last[2].name == "weight average (epochs 3-3), plain"
    epoch, plain = (
        Scores.load(tmp_path / "run" / "scores" / f"evaluation_{n}.npz") for n in ("epoch_003", "plain_average")
    )
    np.testing.assert_array_equal(epoch.scores, plain.scores)
    fixed = dataclasses.replace(config, aggregation=AggregationConfig(first=2, last=3))
    assert loop.train(fixed)[1].name == whole_run[1][1].name
    assert_same_results(tmp_path / "run", Path(whole_run[0].run_dir))
    longer = dataclasses.replace(fixed, optimizer=dataclasses.replace(config.optimizer, epochs=4))
    capsys.readouterr()
    loop.train(longer)
    assert "the weight average ends with epoch 3: use --aggregation.last 0" in capsys.readouterr().out


def test_a_run_directory_of_another_config_is_refused_with_the_fields(whole_run):
    config, _ = whole_run
    other = dataclasses.replace(config, seed=3, sampling=dataclasses.replace(config.sampling, mixup=0.0))
    with pytest.raises(RunError, match=r"another config \(seed: 0 -> 3; sampling\.mixup: 0\.5 -> 0\.0\).*--run-dir"):
        loop.train(other)


def test_a_run_directory_of_other_data_is_refused(data, tmp_path):
    copy = sounds.make(tmp_path / "sounds")
    config = sounds.config(copy, tmp_path / "run")
    loop.train(config)
    edited = json.loads((copy / "train.json").read_text())
    edited["data"][0]["labels"] = "/t/noise"
    (copy / "train.json").write_text(json.dumps(edited))
    with pytest.raises(RunError, match=r"started on other data \(changed: train\).*--data\.edited accept"):
        loop.train(config)
    accepting = dataclasses.replace(config, data=dataclasses.replace(config.data, edited="accept"))
    loop.train(accepting)
    assert "train was edited since this run was started" in (tmp_path / "run" / "log.txt").read_text()
    loop.train(config)  # What was accepted is what the run is on now.
    edited["data"].pop()
    (copy / "train.json").write_text(json.dumps(edited))
    with pytest.raises(RunError, match=r"with 26 clips \(train\), and there are 25 now, which makes it another run"):
        loop.train(accepting)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_the_step_with_everything_saved(
    whole_run, data, tmp_path, monkeypatch, capfd, number, code
):
    config = sounds.config(data, tmp_path / "run")
    add = TrainingMonitor.add

    def told(self, step, batch, metrics):
        add(self, step, batch, metrics)
        if step == 5:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # A thread records the signal.

    monkeypatch.setattr(TrainingMonitor, "add", told)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"step 6 is saved: start the command again to resume") as caught:
        loop.train(config)
    assert caught.value.code == code
    assert signal.getsignal(number) is before
    assert "finishing this step and saving" in capfd.readouterr().err
    assert max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()) == 6
    monkeypatch.setattr(TrainingMonitor, "add", add)
    loop.train(config)
    assert_same_results(Path(whole_run[0].run_dir), tmp_path / "run")


def test_a_signal_while_scoring_ends_the_run_with_the_epoch_saved(whole_run, data, tmp_path, monkeypatch):
    config = sounds.config(data, tmp_path / "run")
    score = RunArtifacts.score

    def told(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return score(self, *arguments)

    monkeypatch.setattr(RunArtifacts, "score", told)
    with pytest.raises(Stopped, match="all work so far is saved"):
        loop.train(config)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()] == ["4"]
    monkeypatch.setattr(RunArtifacts, "score", score)
    loop.train(config)
    assert_same_results(Path(whole_run[0].run_dir), tmp_path / "run")


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(whole_run, data, tmp_path, damage, capsys):
    shutil.copytree(whole_run[0].run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.csv").unlink()  # so that the run is unfinished
    newest = tmp_path / "run" / "checkpoints" / "12"
    largest = max((p for p in newest.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "lost":
        largest.unlink()
    else:
        largest.write_bytes(content if damage == "flipped" else content[: len(content) // 3])
    loop.train(sounds.config(data, tmp_path / "run"))
    assert re.search(
        r"checkpoint .*12 (is damaged|cannot be read).*resuming from the previous checkpoint, of step 8",
        capsys.readouterr().out,
    )
    assert (tmp_path / "run" / "checkpoints" / "damaged_12").is_dir()
    assert_same_results(Path(whole_run[0].run_dir), tmp_path / "run")


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(whole_run, data, tmp_path):
    shutil.copytree(whole_run[0].run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.csv").unlink()
    for step in ("8", "12"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "model")
    with pytest.raises(CheckpointError, match=r"no earlier one: restore .* or delete it to train from the beginning"):
        loop.train(sounds.config(data, tmp_path / "run"))


def test_a_checkpoint_is_saved_by_the_clock_too(data, tmp_path, monkeypatch):
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), checkpoint_minutes=1e-6)
    saved, save = [], RunCheckpoints.save
    monkeypatch.setattr(RunCheckpoints, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest)))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4))
    one = dataclasses.replace(config.optimizer, epochs=2)
    loop.train(dataclasses.replace(config, optimizer=one, aggregation=AggregationConfig(first=1, last=1)))
    assert saved[:3] == [5, 7, 12]  # Not after every step: a request is fulfilled some steps later.


def test_a_directory_that_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(RunError, match=r"photos holds files but no run"):
        loop.train(sounds.config(data, tmp_path / "photos"))
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_unreadable_clips_stop_a_run_before_it_starts_or_are_left_out_on_request(tmp_path):
    data = sounds.make(tmp_path / "sounds")
    (data / "train02.wav").write_bytes(b"")
    config = sounds.config(data, tmp_path / "run")
    with pytest.raises(DataError, match=r"train02\.wav.*--data\.unreadable skip"):
        loop.train(config)
    assert not (tmp_path / "run").exists()
    loop.train(dataclasses.replace(config, data=dataclasses.replace(config.data, unreadable="skip")))
    assert (tmp_path / "run" / "summary.json").is_file()


def test_fine_tuning_starts_from_a_run_and_can_leave_its_backbone_as_it_is(data, tmp_path):
    architecture = ModelConfig(name="efficientnet-tiny", heads=1)
    network = from_config(architecture, 4, np.float32, nnx.Rngs(5))
    average = tmp_path / "first" / "models" / "average"
    save_model(average, ModelCard(architecture, FrontendConfig(), sounds.VOCABULARY, {}), *split_model(network))
    tuned = dataclasses.replace(
        sounds.config(data, tmp_path / "tuned"),
        model=architecture,
        optimizer=OptimizerConfig(learning_rate=1e-2, epochs=1, warmup_steps=0),
        aggregation=AggregationConfig(first=1, last=1),
        pretraining=PretrainingConfig(str(tmp_path / "first"), freeze=True),
    )
    rows = loop.train(tuned)
    # There is nothing to re-estimate: one row for the average.
    assert [row.name.split(" (")[0] for row in rows] == ["best single", "weight average", "checkpoint ensemble"]
    log = (tmp_path / "tuned" / "log.txt").read_text()
    assert "head: 4 of 4 classes copied by mid, 0 new" in log
    before, after = (load_model(tmp_path / name).network for name in ("first", "tuned"))
    jax.tree.map(np.testing.assert_array_equal, split_model(before.backbone), split_model(after.backbone))
    assert np.any(split_model(before.head)[0]["cla"]["kernel"] != split_model(after.head)[0]["cla"]["kernel"])


@pytest.mark.parametrize(("seconds", "slow"), [(0.0, False), (1.1, True)])
def test_a_loader_that_lets_the_steps_wait_is_told_of(data: Path, seconds: float, slow: bool):
    def stream():
        time.sleep(seconds)
        yield {}

    monitor = TrainingMonitor(datasets.load(sounds.config(data, Path("unused")).data, "bce").train, set())
    assert monitor.fetch(stream()) == {}
    line, shown = monitor.loader_report()
    assert shown is slow
    assert ("psla pack" in line) is slow


# ---- Further metrics -------------------------------------------------------------------------------------------------


def test_further_metrics_are_in_all_tables_and_select_the_best_epoch(whole_run, data, tmp_path, monkeypatch, capsys):
    """`worst` falls as scores move away from 0.5, so it selects another epoch than mAP does."""
    metrics = ("lwlrap", "measures:worst(factor=2.0)", "measures:report")
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), metrics=metrics, select="worst_factor_2.0")
    monkeypatch.setattr(TrainingMonitor, "report_failed_clips", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # After the steps of the first epoch.
        loop.train(config)
    monkeypatch.undo()
    measured = loop.train(config)
    rows, before = table(tmp_path / "run" / "result.csv"), table(Path(whole_run[0].run_dir) / "result.csv")
    added = [
        *("lwlrap", "worst_factor_2.0", "report/classes", "report/clips", "report/exclusive", "report/mean_score_all"),
    ]
    assert list(rows[0]) == [*before[0], *added]
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    evaluators = Evaluators.find(metrics, sounds.VOCABULARY)
    for number, row in enumerate(rows, 1):
        values = evaluators(Scores.load(tmp_path / "run" / "scores" / f"validation_epoch_{number:03d}.npz"))
        assert {name: float(row[name]) for name in added} == pytest.approx(values, rel=1e-8)
    falling = [float(row["worst_factor_2.0"]) for row in rows]
    best = 1 + falling.index(max(falling))
    assert measured[0].name == f"best single (epoch {best})"
    assert read_card(tmp_path / "run" / "models" / "best").notes["epochs"] == [best]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    combined = evaluators(Scores.load(tmp_path / "run" / "scores" / "evaluation_ensemble.npz"))
    assert {k: summary["checkpoint ensemble (3 epochs)"]["evaluation"][k] for k in added} == combined
    (ensemble,) = table(tmp_path / "run" / "ensemble_result.csv")
    assert float(ensemble["evaluation_lwlrap"]) == pytest.approx(combined["lwlrap"])
    shown = capsys.readouterr().out
    assert f"lwlrap {float(rows[2]['lwlrap']):.4f}  worst_factor_2.0 {falling[2]:.4f}" in shown
    assert re.search(r"accuracy[ ┃]+lwlrap[ ┃]+worst_factor_2\.0", shown)


def test_without_a_validation_set_further_metrics_are_means_over_the_last_epochs(data, tmp_path):
    sets = dataclasses.replace(sounds.config(data, tmp_path / "run").data, validation="")
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), data=sets, metrics=("lwlrap",))
    measured = loop.train(config)
    rows = table(tmp_path / "run" / "result.csv")
    mean = np.mean([float(row["lwlrap"]) for row in rows])
    assert measured[0].further["evaluation"]["lwlrap"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": ("measures:undefined",)}, "metrics: undefined is nan for random scores of the clips in "),
        ({"metrics": ("measures:text",)}, "metrics: text is 'good': return a number"),
        (
            {"select": "lwlrap", "metrics": ("micro_map",)},
            "select is 'lwlrap': choose one of mAP, mAUC, d_prime, precision, recall, valid_loss, accuracy, micro_map,",
        ),
    ],
)
def test_a_metric_that_does_not_fit_ends_a_run_before_it_begins(data, tmp_path, fields, message):
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        loop.train(config)
    assert not (tmp_path / "run").exists()


# ---- Trackers --------------------------------------------------------------------------------------------------------


def test_trackers_receive_every_step_and_epoch_of_a_run_and_its_results_once(data, tmp_path, monkeypatch, capsys):
    """Also of a run that is interrupted and resumed with another tracker beside the first."""
    calls = trackers.install(monkeypatch, tmp_path / "packages", "wandb")
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), log=("wandb",), metrics=("lwlrap",))
    save = RunArtifacts.save_scores
    monkeypatch.setattr(
        RunArtifacts, "save_scores", lambda self, kind, name, scores: save(self, kind, name, scores) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):  # In the first epoch, whose steps are saved.
        loop.train(config)
    monkeypatch.setattr(RunArtifacts, "save_scores", save)
    both = dataclasses.replace(config, log=("wandb", "trackers:Table(fail='results')", "tensorboard"))
    measured = loop.train(both)
    loop.train(both)  # A finished run has nothing to send.
    assert trackers.read(calls, "finish") == [1, 0]
    first, second = trackers.read(calls, "init")
    assert first["id"] == second["id"]
    assert first["config"]["optimizer.learning_rate"] == 1e-2
    points = trackers.read(calls, "log")
    assert [point["step"] for point in points if "step" in point] == list(range(1, 13))
    assert {"step/loss", "step/gradient_norm"} < set(points[0])
    rows = table(tmp_path / "run" / "result.csv")
    epochs = [point for point in points if "epoch" in point]
    for row, point in zip(rows, epochs, strict=True):
        shown = {name: point[f"validation/{name}"] for name in row if name != "epoch" and f"validation/{name}" in point}
        assert {name: float(row[name]) for name in shown} == pytest.approx(shown, rel=1e-8)
        assert {"mAP", "lwlrap", "accuracy", "train_loss"} <= set(shown)
        assert point["validation/AP_per_class"] == 3  # The fourth class has no clips.
        assert point["train/skipped_steps"] == 0
    (summary,) = trackers.read(calls, "summary")
    assert summary["evaluation/checkpoint_ensemble_lwlrap"] == measured[-1].further["evaluation"]["lwlrap"]
    assert summary["validation/best_single_mAP"] == measured[0].sets["validation"].mAP
    lines = (tmp_path / "run" / "table.txt").read_text().splitlines()
    assert lines[0] == "open 4 0"
    assert [line.split()[:2] for line in lines if line.startswith("step ")] == [["step", str(n)] for n in range(5, 13)]
    assert "failed and is disabled (ConnectionError: unplugged)" in capsys.readouterr().out
    assert (tmp_path / "run" / "ensemble_result.csv").is_file()
    assert list((tmp_path / "run").glob("*tfevents*"))


def test_without_trackers_no_events_are_written_and_a_missing_one_ends_a_run_before_it_begins(data, tmp_path):
    config = dataclasses.replace(sounds.config(data, tmp_path / "run"), log=())
    loop.train(config)
    assert not list((tmp_path / "run").rglob("*tfevents*"))
    missing = dataclasses.replace(config, log=("trackers:Missing",), run_dir=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"log is 'trackers:Missing': 'trackers:Missing' cannot be imported"):
        loop.train(missing)
    assert not (tmp_path / "other").exists()


def test_a_training_from_python_caches_its_programs_and_leaves_jax_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    monkeypatch.setattr(loop, "_train", lambda config, cache_programs: [jax.config.jax_compilation_cache_dir])
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert loop.train(sounds.config(tmp_path, tmp_path / "run")) == [str(tmp_path / "xla")]
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
