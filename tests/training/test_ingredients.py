"""Runs with every registered ingredient, with the moving average of the weights, and with the default recipe."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import sounds
from tolerance import assert_close, assert_trees_close

import psla_jax
from psla_jax.config import AggregationConfig, OptimizerConfig, RunConfig, SamplingConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.train_source import train_source
from psla_jax.evaluation.scores import Scores
from psla_jax.ingredients import parse
from psla_jax.models.model_dir import load_model, read_card
from psla_jax.models.state import split_model
from psla_jax.sampling.spectrogram import SPECTROGRAM_STEPS
from psla_jax.sampling.waveform import WAVEFORM_STEPS
from psla_jax.training import loop
from psla_jax.training.losses import LOSSES
from psla_jax.training.monitor import TrainingMonitor
from psla_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from psla_jax.training.run_directory import RunError
from psla_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.make(tmp_path_factory.mktemp("sounds"))


def table(path: Path) -> list[dict[str, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# Each run swaps as many ingredients as possible, because compiling a step takes longest.
SWAPS: dict[str, dict[str, dict]] = {
    "adamw": {
        "optimizer": {
            "name": "adamw(b2=0.98)",
            "schedule": "cosine",
            "loss": "focal(gamma=1.0)",
            "label_smoothing": 0.1,
            "clip": 1.0,
            "no_decay": ("*.bias", "*norm*"),
            "rates": ("head.*=0.5",),
            "weight_decay": 0.01,
        },
        "sampling": {
            "waveform": ("crop", "gain", "roll", "mixup(most=3, union=True)"),
            "spectrogram": ("freq_mixstyle", "specaugment"),
        },
    },
    "lion": {
        "optimizer": {"name": "lion", "schedule": "exponential", "loss": "asymmetric", "class_weights": "sqrt"},
        "sampling": {
            "waveform": ("background(datafile='NOISE', rate=1.0)",),
            "spectrogram": ("mixup", "filter_augment"),
        },
    },
    "muon": {
        "optimizer": {"name": "muon", "schedule": "constant", "loss": "bce", "accumulate": 2},
        "sampling": {"spectrogram": ("patchout", "noise")},
    },
    "lamb": {"optimizer": {"name": "lamb", "schedule": "step_decay", "loss": "ce", "label_smoothing": 0.1}},
    "sgd": {"optimizer": {"name": "sgd", "schedule": "cosine(final=0.1)"}, "sampling": {"waveform": ()}},
    "adam": {"optimizer": {"name": "adam", "loss": "auto"}},
}


def swapped(data: Path, run: Path, name: str) -> RunConfig:
    """Returns the config of two epochs with the ingredients of a swap."""
    config = sounds.config(data, run, bootstrap=0, aggregation=AggregationConfig(first=2, reestimate=False))
    optimizer = dataclasses.replace(config.optimizer, **{"epochs": 2, **SWAPS[name]["optimizer"]})
    fields = dict(SWAPS[name].get("sampling", {}))
    if "waveform" in fields:
        noise = str(data / "validation.json")
        fields["waveform"] = tuple(text.replace("NOISE", noise) for text in fields["waveform"])
    sampling = dataclasses.replace(config.sampling, **fields)
    return dataclasses.replace(config, optimizer=optimizer, sampling=sampling)


def used(section: str, field: str) -> set[str]:
    defaults = {"optimizer": OptimizerConfig(), "sampling": SamplingConfig()}[section]
    values = [swap.get(section, {}).get(field, getattr(defaults, field)) for swap in SWAPS.values()]
    return {parse(text)[0] for value in values for text in ((value,) if isinstance(value, str) else value)}


def test_the_swaps_use_every_registered_ingredient():
    assert used("optimizer", "name") == set(OPTIMIZERS)
    assert used("optimizer", "schedule") == set(SCHEDULES)
    assert used("optimizer", "loss") == set(LOSSES)
    assert used("sampling", "waveform") == set(WAVEFORM_STEPS)
    assert used("sampling", "spectrogram") == set(SPECTROGRAM_STEPS)


@pytest.mark.parametrize("name", [name for name in SWAPS if name != "adam"])
def test_a_run_with_other_ingredients_learns_records_them_and_refuses_others(data: Path, tmp_path: Path, name: str):
    config = swapped(data, tmp_path / "run", name)
    loop.train(config)
    rows = table(tmp_path / "run" / "result.csv")
    assert len(rows) == 2
    for row in rows:
        assert np.isfinite([row[column] for column in ("train_loss", "valid_loss", "mAP", "learning_rate")]).all()
    assert rows[-1]["mAP"] > 0.4
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    for section, fields in SWAPS[name].items():
        for field in fields:
            value = getattr(getattr(config, section), field)
            assert kept[section][field] == (list(value) if isinstance(value, tuple) else value)
    loop.train(config)  # A finished run is recognised from its record.
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="adam(b1=0.5)"))
    with pytest.raises(RunError, match=r"optimizer\.name: '.*' -> 'adam\(b1=0\.5\)'"):
        loop.train(other)


def test_the_moving_average_is_exact_over_a_restart_and_a_model_of_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Against the recursion over the weights after every step; its statistics are those of the training set."""
    config = sounds.config(data, tmp_path / "run", bootstrap=0)
    decay = 0.6
    config = dataclasses.replace(
        config, checkpoint_every=3, optimizer=dataclasses.replace(config.optimizer, ema=decay, epochs=3)
    )
    step, add, visited = Trainer.step, TrainingMonitor.add, {}

    def recorded(self: Trainer, state: dict, batch: dict, number: np.int32) -> tuple:
        visited.setdefault(-1, jax.device_get(state["params"]))
        state, metrics = step(self, state, batch, number)
        visited[int(number)] = jax.device_get(state["params"])
        return state, metrics

    def interrupted(self: TrainingMonitor, number: int, *rest: object) -> None:
        if number == 5:
            raise KeyboardInterrupt
        add(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", recorded)
    monkeypatch.setattr(TrainingMonitor, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config)
    monkeypatch.setattr(TrainingMonitor, "add", add)
    rows = loop.train(config)
    assert sorted(visited) == list(range(-1, 12))
    expected = jax.tree.map(np.float64, visited[-1])
    for number in range(12):
        kept = min(decay, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda a, b, k=kept: k * a + (1 - k) * np.float64(b), expected, visited[number])
    run, model = tmp_path / "run", tmp_path / "run" / "models" / "ema"
    assert_trees_close(split_model(load_model(model, trust=True).network)[0], expected, 1e-5)
    assert read_card(model).notes["decay"] == decay
    (row,) = [row for row in rows if row.name.startswith("moving average of the weights (decay 0.6)")]
    assert json.loads((run / "summary.json").read_text())[row.name]["evaluation"]["mAP"] == row.sets["evaluation"].mAP
    assert table(run / "ema_result.csv")[0]["evaluation_mAP"] == pytest.approx(row.sets["evaluation"].mAP)
    kept_scores = Scores.load(run / "scores" / "evaluation_ema.npz")
    psla_jax.evaluate(
        model, config.data.evaluation, trust=True, keep_scores=False, bootstrap=0, save=tmp_path / "s.npz"
    )
    np.testing.assert_allclose(Scores.load(tmp_path / "s.npz").scores, kept_scores.scores, atol=1e-6)
    tag = psla_jax.load(model, trust=True).tag(kept_scores.clips[1])
    assert tag.scores.shape == (4,)
    assert np.isfinite(tag.scores).all()
    # Without an average, every other result is the same.
    plain = dataclasses.replace(
        config, run_dir=str(tmp_path / "plain"), optimizer=dataclasses.replace(config.optimizer, ema=0.0)
    )
    loop.train(plain)
    assert (tmp_path / "plain" / "result.csv").read_bytes() == (run / "result.csv").read_bytes()
    assert not (tmp_path / "plain" / "models" / "ema").exists()


def test_the_default_recipe_is_what_it_was_before_ingredients_could_be_swapped(data: Path, tmp_path: Path):
    """Figures of the version with a closed recipe; a training amplifies how processors round."""
    config = sounds.config(data, tmp_path / "run", bootstrap=0)
    loop.train(config)
    rows = table(tmp_path / "run" / "result.csv")
    assert_close([row["train_loss"] for row in rows], [0.516571641, 0.280478626, 0.306054264], 1e-3)
    assert_close([row["valid_loss"] for row in rows], [0.408864141, 0.266968787, 0.187680855], 5e-3)
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2, 1e-2, 5e-3])
    train = Datafile.read(data / "train.json", sounds.VOCABULARY)
    source = train_source(train, config.data, config.sampling, num_samples=6640, epochs=2, seed=0)
    examples = [source[item] for item in range(8)]
    assert [int(row["clip"]) for row in examples] == [13, 24, 3, 24, 8, 11, 21, 10]
    labels = [2.660421, 1.629793, 1.0, 2.21554, 3.0, 3.0, 1.0, 2.0]
    assert_close([row["labels"] @ np.arange(1, 5) for row in examples], labels, 1e-6)
    found = [np.float64(row["waveform"]) @ np.cos(np.arange(6640)) for row in examples[:4]]
    assert_close(found, [-1.74697005, 0.38913653, -1.42036782, -3.93057892], 1e-5)
