"""Ingredients in a config file, also its own functions, and ingredients that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sounds

from psla_jax.cli import main, train_evaluate
from psla_jax.config import RunConfig

OWN = """
import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import sounds


def huber(scores, labels, valid, *, delta=1.0):
    assert valid.shape == scores.shape[:1]
    return optax.huber_loss(scores, labels, delta=delta).sum(axis=1)


def other(scores, labels):
    return jnp.square(scores - labels).sum(axis=1)


def flipped(example, rng, num_samples):
    sign = np.float32(rng.choice([-1, 1]))
    return dataclasses.replace(example, waveform=sign * example.waveform[:num_samples])


def reversed_in_time(batch, keys):
    return {**batch, "spectrogram": batch["spectrogram"][:, ::-1]}


def halving(learning_rate, steps_per_epoch):
    return lambda step: learning_rate * 0.5 ** (step // steps_per_epoch)


def nadam(learning_rate, *, b2):
    return optax.nadam(learning_rate, b2=b2)


def number(scores, labels):
    return jnp.sum(scores - labels)


def broken(scores, labels):
    return scores @ labels


def nonsense(example, rng):
    return example.waveform


def narrowed(batch, keys):
    return {**batch, "spectrogram": batch["spectrogram"].astype("bfloat16")}


def shrunk(batch, keys):
    return {**batch, "labels": batch["labels"][:, 1:]}


config = sounds.config(pathlib.Path(DATA), pathlib.Path(RUN), bootstrap=0)
"""
USE = """
config = dataclasses.replace(
    config,
    sampling=dataclasses.replace(
        config.sampling, waveform=("mixup", flipped), spectrogram=("specaugment", reversed_in_time)
    ),
    optimizer=dataclasses.replace(
        config.optimizer,
        name=functools.partial(nadam, b2=0.98),
        schedule=halving,
        loss=functools.partial(huber, delta=0.5),
        epochs=2,
    ),
    aggregation=dataclasses.replace(config.aggregation, first=1, last=2),
    data=dataclasses.replace(config.data, workers=1),
)
"""


def write(folder: Path, *parts: str, name: str = "own.py") -> Path:
    text = "".join([OWN, *parts]).replace("DATA", repr(str(folder / "data"))).replace("RUN", repr(str(folder / "run")))
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the module path, in which reading a config inserts its folder: that of a json.py, for example."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    sounds.make(folder / "data")
    return folder


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs ``psla train`` with a user's mistake; returns its one sentence."""
    try:
        code = main.main(["train", *arguments])
    except SystemExit as stopped:  # tyro exits on its own and prints the message in a frame.
        code, error = stopped.code, " ".join(capsys.readouterr().err.replace("│", " ").split())
    else:
        error = capsys.readouterr().err
        assert error.startswith("psla: ")
        assert error.count("\n") == 1
    assert code == 2
    assert "Traceback" not in error
    return error


def train(*arguments: str) -> subprocess.CompletedProcess:
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-m", "psla_jax.cli.main", "train", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True)


def test_functions_of_a_config_file_train_also_in_workers_and_when_resumed(home: Path, capsys: pytest.CaptureFixture):
    config = write(home, USE)
    done = train(str(config), "--optimizer.epochs", "1", "--aggregation.last", "1")
    assert done.returncode == 0, done.stderr
    kept = json.loads((home / "run" / "config.json").read_text())
    assert kept["sampling"]["waveform"] == ["mixup", "own:flipped"]
    assert kept["sampling"]["spectrogram"] == ["specaugment", "own:reversed_in_time"]
    assert kept["optimizer"]["name"] == "own:nadam(b2=0.98)"
    assert kept["optimizer"]["schedule"] == "own:halving"
    assert kept["optimizer"]["loss"] == "own:huber(delta=0.5)"
    done = train(str(config))
    assert done.returncode == 0, done.stderr
    assert "the run of 1 epochs is continued up to epoch 2" in done.stdout
    rows = (home / "run" / "result.csv").read_text().splitlines()
    rates = [
        row["learning_rate"] for row in (dict(zip(rows[0].split(","), map(float, r.split(",")))) for r in rows[1:])
    ]
    assert rates == pytest.approx([1e-2, 5e-3])
    changes = {
        "--optimizer.loss own:other": r"optimizer.loss: 'own:huber(delta=0.5)' -> 'own:other'",
        "--optimizer.name adamw": "optimizer.name: 'own:nadam(b2=0.98)' -> 'adamw'",
        "--sampling.waveform mixup": "sampling.waveform: ('mixup', 'own:flipped') -> ('mixup',)",
        "--optimizer.ema 0.9": "optimizer.ema: 0.0 -> 0.9",
    }
    for arguments, named in changes.items():
        assert named in refusal(capsys, str(config), *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            "--optimizer.loss focl",
            "optimizer.loss is 'focl': 'focl' is unknown: choose one of auto, bce, ce, focal, asym",
        ),
        (
            "--optimizer.loss focal(gama=1)",
            "focal has no option 'gama': its parameters are scores, labels, class_weights",
        ),
        (
            "--optimizer.loss nowhere:loss",
            "optimizer.loss is 'nowhere:loss': 'nowhere:loss' cannot be imported (No module named 'nowhere')",
        ),
        ("--optimizer.loss focal(", "optimizer.loss: 'focal(' cannot be parsed: give a name or module:callable"),
        (
            "--optimizer.loss own:number",
            "own:number', which returns () for two clips: return one value per clip, (2,).",
        ),
        ("--optimizer.loss own:broken", "optimizer.loss is 'own:broken', which cannot be computed (TypeError: "),
        ("--optimizer.loss own:halving", "optimizer.loss is 'own:halving', which cannot be computed (TypeError: "),
        ("--optimizer.name own:nadam", "nadam(learning_rate, b2) cannot be called (missing a required"),
        ("--optimizer.schedule own:number", "optimizer.schedule: number(scores, labels) cannot be called"),
        ("--optimizer.name optax:lbfgs", "optimizer.name is 'optax:lbfgs', whose updates cannot be computed"),
        ("--optimizer.no-decay *.beta", "optimizer.no_decay has '*.beta', which matches no parameter"),
        ("--optimizer.rates stemm.*=0.1", "optimizer.rates has 'stemm.*', which matches no parameter"),
        ("--optimizer.class-weights weights.csv", "optimizer.class_weights is 'weights.csv': choose inverse or sqrt"),
        ("--sampling.waveform own:nonsense", "sampling.waveform is 'own:nonsense', which does not return an Example"),
        (
            "--sampling.waveform background(datafile='no.json')",
            "sampling.waveform is \"background(datafile='no.json')\": ",
        ),
        ("--sampling.spectrogram own:narrowed", "which changes the type of spectrogram from float32 to bfloat16"),
        ("--sampling.spectrogram own:shrunk", "which changes the shape of labels from (2, 4) to (2, 3)"),
        (
            "--sampling.spectrogram patchout(share=1)",
            "cannot be computed (ValueError: patchout with the share 1 leaves 0",
        ),
        (
            "--sampling.spectrogram own:flipped",
            "sampling.spectrogram: flipped(example, rng, num_samples) cannot be called",
        ),
    ],
)
def test_an_ingredient_that_cannot_be_used_ends_before_training_in_one_sentence(
    home: Path, capsys: pytest.CaptureFixture, arguments: str, named: str
):
    run = home / "refused"
    assert named in refusal(capsys, str(write(home)), "--run-dir", str(run), *arguments.split(" ", 1))
    assert not list(run.glob("checkpoints/*"))
    assert not (run / "result.csv").exists()


def test_a_class_that_a_file_of_weights_lacks_is_named(home: Path, capsys: pytest.CaptureFixture):
    (home / "weights.csv").write_text("mid,weight\n/t/low,1\n/t/high,1\n/t/noise,2\n")
    weights = "--optimizer.class-weights", str(home / "weights.csv")
    error = refusal(capsys, str(write(home)), "--run-dir", str(home / "refused"), *weights)
    assert "weights.csv', which lacks '/t/never': give every class a row" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss=lambda s, y: s[:, 0]", "optimizer.loss: <function <lambda> at "),
        ("loss=functools.partial(huber, delta=np.float32(1))", "has options that are not literals"),
        ("loss=functools.partial(huber, None)", "has positional arguments: give them as keywords"),
        ("name=optax.adam(1e-3)", "optimizer.name: GradientTransformation"),
    ],
)
def test_what_has_no_import_path_is_refused(home: Path, text: str, message: str, capsys: pytest.CaptureFixture):
    config = write(
        home, f"config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, {text}))"
    )
    error = refusal(capsys, str(config))
    assert f"{config}: " in error
    assert message in error


def test_two_configs_of_the_same_name_are_two_modules(tmp_path: Path):
    for folder, value in (("one", "1"), ("two", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(
            "from psla_jax.config import *\n"
            f"def loss{value}(scores, labels): ...\n"
            f"config = RunConfig(optimizer=OptimizerConfig(loss=loss{value}))\n"
        )
    for folder, value in (("one", "1"), ("two", "2"), ("one", "1")):
        config = train_evaluate.read_config(str(tmp_path / folder / "same.py"))
        assert config.optimizer.loss == f"same:loss{value}"


@pytest.mark.parametrize("name", ["json.py", "two words.py", "config.txt"])
def test_functions_of_a_config_that_cannot_be_imported_by_its_name_are_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
):
    """The module of another name stays what it is; without own functions, the config can be used."""
    text = "from psla_jax.config import *\ndef loss(scores, labels): ...\nconfig = RunConfig(seed=4)\n"
    (tmp_path / name).write_text(text)
    assert train_evaluate.read_config(str(tmp_path / name)) == RunConfig(seed=4)
    assert sys.modules["json"] is json
    (tmp_path / name).write_text(text + "config = RunConfig(optimizer=OptimizerConfig(loss=loss))\n")
    assert "cannot be imported as" in refusal(capsys, str(tmp_path / name))
