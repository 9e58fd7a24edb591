"""psla sweep: every setting with every seed, restartable and in shares, with mean and spread sorted by validation."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import sounds

from psla_jax.cli import main
from psla_jax.cli.sweep import combinations
from psla_jax.config import AggregationConfig, OptimizerConfig, RunConfig
from psla_jax.data import datasets
from psla_jax.runtime.preemption import Stopped
from psla_jax.tagging.share import Share
from psla_jax.training import loop, run_directory
from psla_jax.training.monitor import TrainingError
from psla_jax.training.sweep import SettingResult, SweepError, sweep

CONFIG = """
import dataclasses, pathlib, sounds
from psla_jax.config import AggregationConfig, OptimizerConfig
config = sounds.config(
    pathlib.Path({data!r}), pathlib.Path({run!r}),
    optimizer=OptimizerConfig(learning_rate=1e-2, epochs=1, warmup_steps=0),
    aggregation=AggregationConfig(first=1, last=1), metrics=("lwlrap",), log=(),
)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sounds.make(tmp_path_factory.mktemp("sweep") / "data", train=16)


def arguments(data: Path, home: Path, *more: str) -> list[str]:
    (home / "config.py").write_text(CONFIG.format(data=str(data), run=str(home / "run")))
    return ["sweep", str(home / "config.py"), *more]


def table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "sweep.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_reports_mean_and_spread_and_a_run_that_fails_and_repeats_nothing(data, tmp_path, capsys, monkeypatch):
    rates = ("--set", "optimizer.learning-rate", "1e-2", "1e30")
    command = arguments(data, tmp_path, *rates, "--set", "sampling.mixup", "0", "--seeds", "2", "--seed", "4")
    assert main.main(command) == 1
    directory = tmp_path / "run-sweep"
    good = [f"learning_rate=0.01,mixup=0,seed={seed}" for seed in (4, 5)]
    bad = [f"learning_rate=1e+30,mixup=0,seed={seed}" for seed in (4, 5)]
    assert {path.name for path in directory.iterdir() if path.is_dir()} == {*good, *bad}
    config = json.loads((directory / good[1] / "config.json").read_text())
    assert (config["seed"], config["optimizer"]["learning_rate"], config["sampling"]["mixup"]) == (5, 1e-2, 0)
    summaries = [list(json.loads((directory / name / "summary.json").read_text()).values()) for name in good]
    models = ["best single", "weight average, statistics re-estimated", "weight average, plain", "checkpoint ensemble"]
    rows = table(directory)
    assert [row["model"] for row in rows] == [model for model in models for _ in range(5)] + ["", ""]
    assert {row["setting"] for row in rows[:20]} == {"learning_rate=0.01, mixup=0"}
    for number, model in enumerate(models):
        own = {row["seed"]: row for row in rows if row["model"] == model}
        for kind, metric in (("validation", "accuracy"), ("evaluation", "mAP"), ("evaluation", "lwlrap")):
            values = [summary[number][kind][metric] for summary in summaries]
            std = np.std(values, ddof=1)
            expected = [*values, np.mean(values), std, std / math.sqrt(2)]
            shown = [float(own[seed][f"{kind}_{metric}"]) for seed in ("4", "5", "mean", "std", "error")]
            assert shown == pytest.approx(expected, rel=1e-6, abs=1e-9)
    report = json.loads((directory / "sweep.json").read_text())["settings"]
    assert list(report) == ["learning_rate=0.01, mixup=0", "learning_rate=1e+30, mixup=0"]
    mean = report["learning_rate=0.01, mixup=0"]["models"]["best single"]["evaluation"]["mAP"]["mean"]
    assert mean == pytest.approx(np.mean([summary[0]["evaluation"]["mAP"] for summary in summaries]))
    assert report["learning_rate=1e+30, mixup=0"]["models"] == {}
    assert [row["status"][:11] for row in rows[-2:]] == ["the loss is"] * 2
    output = capsys.readouterr().out
    assert f"{directory / bad[0]} failed: the loss is" in output
    assert "Settings are sorted by their highest mean on the validation set. Nothing is selected on the eval" in output
    assert f"{mean:.4f} +- " in output
    trained: list[str] = []
    monkeypatch.setattr(loop, "train", lambda config, **_: trained.append(Path(config.run_dir).name))
    before = (directory / "sweep.csv").read_bytes()
    assert main.main(command) == 0  # The failed runs are tried again, and are unfinished now.
    assert trained == bad
    assert (directory / "sweep.csv").read_bytes().splitlines()[:21] == before.splitlines()[:21]
    assert [row["status"] for row in table(directory)[-2:]] == ["unfinished"] * 2


def configs(data: Path, **rates: float) -> dict[str, RunConfig]:
    base = sounds.config(data, Path("unused"), aggregation=AggregationConfig(first=1), log=())
    optimizer = OptimizerConfig(epochs=1)
    return {
        label: dataclasses.replace(base, optimizer=dataclasses.replace(optimizer, learning_rate=rate))
        for label, rate in rates.items()
    }


def pretend(config: RunConfig, **_: object) -> None:
    """Writes the files of a finished run; a higher rate is better on the validation set and worse on the other."""
    data = datasets.load(config.data, "bce")
    directory, rate = Path(config.run_dir), config.optimizer.learning_rate
    directory.mkdir(parents=True, exist_ok=True)
    optimizer = dataclasses.replace(config.optimizer, loss="bce")
    run_directory.write_metadata(directory, dataclasses.replace(config, optimizer=optimizer), data)
    sets = {"validation": {"mAP": rate + 0.01 * config.seed}, "evaluation": {"mAP": 1 - rate, "d_prime": None}}
    summary = {f"best single (epoch {config.seed})": sets, "checkpoint ensemble (3 epochs)": sets}
    (directory / "summary.json").write_text(json.dumps(summary))


def means(results: list[SettingResult], kind: str = "validation") -> Mapping[str, float]:
    return {result.label: result.estimate("best single", kind, "mAP").mean for result in results}


def test_settings_are_sorted_by_validation_and_shares_make_one_table(data, tmp_path, monkeypatch):
    trained: list[str] = []
    monkeypatch.setattr(loop, "train", lambda config, **_: (trained.append(config.run_dir), pretend(config)))
    settings = configs(data, low=0.1, high=0.5, middle=0.3)
    for index in (0, 1):
        sweep(settings, (0, 2), tmp_path / "shared", share=Share(index, 2))
        assert len(trained) == len(set(trained)) == 3 * (index + 1)
        states = {row["status"] for row in table(tmp_path / "shared") if row["seed"] in ("0", "2")}
        assert states == ({"finished", "unfinished"} if index == 0 else {"finished"})
    assert [Path(run_dir).name for run_dir in trained[:3]] == ["low,seed=0", "low,seed=2", "high,seed=0"]
    results = sweep(settings, (0, 2), tmp_path / "whole")
    assert [result.label for result in results] == ["high", "middle", "low"]
    assert means(results) == pytest.approx({"high": 0.51, "middle": 0.31, "low": 0.11})
    assert means(results, "evaluation")["high"] == 0.5
    assert results[0].models == ["best single", "checkpoint ensemble"]
    assert results[0].estimate("best single", "validation", "mAP").error == pytest.approx(0.01)
    names = [(tmp_path / name / "sweep.csv").read_text() for name in ("shared", "whole")]
    assert names[0] == names[1]


def test_an_interrupted_sweep_is_resumed_and_changed_data_or_settings_are_trained_again(data, tmp_path, monkeypatch):
    trained: list[str] = []

    def train(config: RunConfig, **_: object) -> None:
        trained.append(Path(config.run_dir).name)
        if len(trained) == 2:
            raise Stopped(15, "step 3 is saved")
        pretend(config)

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(Stopped):
        sweep(configs(data, low=0.1, high=0.5), (0, 1), tmp_path)
    assert not (tmp_path / "sweep.csv").exists()
    sweep(configs(data, low=0.1, high=0.5), (0, 1), tmp_path)
    assert trained == ["low,seed=0", "low,seed=1", "low,seed=1", "high,seed=0", "high,seed=1"]
    trained[:] = ["", "", ""]
    longer = {
        label: dataclasses.replace(config, bootstrap=5) for label, config in configs(data, low=0.1, high=0.5).items()
    }
    sweep({**longer, "high": dataclasses.replace(configs(data, high=0.5)["high"], checkpoint_every=3)}, (0,), tmp_path)
    assert trained[3:] == ["low,seed=0"], "checkpoints do not change results, and resamples do"


def test_any_error_of_a_run_is_reported_and_the_others_go_on(data, tmp_path, monkeypatch, capsys):
    def train(config: RunConfig, **_: object) -> None:
        if config.optimizer.learning_rate == 0.1:
            raise {0: TrainingError("the loss is nan"), 1: ZeroDivisionError("in a callable")}[config.seed]
        pretend(config)

    monkeypatch.setattr(loop, "train", train)
    results = sweep(configs(data, low=0.1, high=0.5), (0, 1), tmp_path)
    assert [[run.status for run in result.runs] for result in results] == [
        ["finished", "finished"],
        ["the loss is nan", "ZeroDivisionError: in a callable"],
    ]
    assert [run.failed for run in results[1].runs] == [True, True]
    assert "Traceback" in (tmp_path / "low,seed=1.failed").read_text()
    assert "Traceback" not in (tmp_path / "low,seed=0.failed").read_text()
    assert "0 of 2" in capsys.readouterr().out
    monkeypatch.setattr(loop, "train", pretend)
    again = sweep(configs(data, low=0.1, high=0.5), (0, 1), tmp_path)
    assert [run.status for result in again for run in result.runs] == ["finished"] * 4


def test_without_a_validation_set_the_order_is_the_given_one(data, tmp_path, monkeypatch, capsys):
    def train(config: RunConfig, **_: object) -> None:
        pretend(config)
        summary = Path(config.run_dir) / "summary.json"
        models = {name: {"evaluation": sets["evaluation"]} for name, sets in json.loads(summary.read_text()).items()}
        summary.write_text(json.dumps(models))

    monkeypatch.setattr(loop, "train", train)
    settings = {
        label: dataclasses.replace(config, data=dataclasses.replace(config.data, validation=""))
        for label, config in configs(data, high=0.5, low=0.1).items()
    }
    assert [result.label for result in sweep(settings, (0,), tmp_path)] == ["high", "low"]
    shown = capsys.readouterr().out
    assert "There is no validation set to sort the settings by: do not select one by its evaluation" in shown
    assert "validation mAP" not in shown


def test_lists_with_nested_options_and_values_that_differ_in_a_late_digit_are_settings_of_their_own():
    nested = ("sampling.waveform", "mixup background(datafile='a b.json', snr=(0, 10)) gain", "")
    found = combinations(RunConfig(), [nested, ("optimizer.learning-rate", "0.00123456", "0.001234561", "1e-3")])
    steps = ("mixup", "background(datafile='a b.json', snr=(0, 10))", "gain")
    assert [config.sampling.waveform for config in found.values()] == [steps] * 3 + [()] * 3
    rates = ("0.00123456", "0.001234561", "0.001")
    assert list(found) == [f"waveform={name}, learning_rate={rate}" for name in (nested[1], "none") for rate in rates]


WRONG = {
    "--set optimizer.rate 1": "--set optimizer.rate: there is no such field",
    "--set seed 1 2": "--set seed: use --seeds",
    "--set run_dir a b": "--set run_dir: it follows from the settings",
    "--set sampling.mixup": "--set sampling.mixup: give each field once, followed by its values",
    "--set sampling.mixup 0 --set sampling.mixup 1": "give each field once",
    "--set sampling.mixup 0.5 0.50": "--set gives mixup=0.5 twice",
    "--set sampling.mixup 0.5 2": "sampling.mixup is 2.0: use a probability in [0, 1]",
    "--set sampling.mixup high": "high",
    "--set optimizer.epochs 3 0": "optimizer.epochs is 0",
    "--set metrics lwlrap measures:failing": "metrics=measures:failing: metrics: failing cannot be computed",
    "--set optimizer.loss bce hinge": "hinge",
    "--set model.name tiny:build tiny:missing": "name=tiny:missing: model.name is 'tiny:missing': 'tiny:missing'",
    "--set data.train nowhere.json": "nowhere.json",
    "--seeds 0": "--seeds is 0: use at least one seed",
    "--share 4/4": "--share is '4/4': give INDEX/COUNT",
}


@pytest.mark.parametrize("options", WRONG)
def test_all_settings_are_checked_before_the_first_run(data, tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    try:
        code = main.main(arguments(data, tmp_path, *options.split(" ")))
    except SystemExit as error:  # tyro exits on its own and prints the message in a frame.
        code = error.code
    assert code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert WRONG[options] in error
    assert "Traceback" not in error
    assert not (tmp_path / "run-sweep").exists()


def test_a_run_directory_of_another_config_is_named_before_the_first_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", pretend)
    sweep(configs(data, low=0.1), (0,), tmp_path)
    (tmp_path / "low,seed=0" / "checkpoints" / "1").mkdir(parents=True)
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SweepError, match=r"^low: .*low,seed=0 holds a run of another config \(optimizer.learning_rate"):
        sweep(configs(data, high=0.5, low=0.3), (0,), tmp_path)
    with pytest.raises(SweepError, match="two runs would have the directory"):
        sweep(configs(data, low=0.1), (0, 0), tmp_path)
    with pytest.raises(SweepError, match="there are 0 settings and 1 seeds"):
        sweep({}, (0,), tmp_path)


def test_lists_of_ingredients_are_values_too(data, tmp_path, monkeypatch):
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(loop, "train", lambda config, **_: seen.append(config.metrics))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1")
    values = ["lwlrap", "lwlrap micro_f1(threshold=0.3) top_k(k=2)", ""]
    assert main.main(arguments(data, tmp_path, "--set", "metrics", *values)) == 0
    assert seen == [("lwlrap",), ("lwlrap", "micro_f1(threshold=0.3)", "top_k(k=2)"), ()]
