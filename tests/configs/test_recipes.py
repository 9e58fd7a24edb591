"""Configs and prepared data sets: from recordings to the summary of a run with the two documented commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import miniature
import numpy as np
import pytest
import sounds

from psla_jax.audio.decode import write_pcm16
from psla_jax.cli import main
from psla_jax.models.model_dir import load_model
from psla_jax.vocabulary.vocabulary import Vocabulary

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {
    "model.name": "tiny:build", "pretraining.source": "", "data.batch-size": "8", "data.workers": "0",
    "frontend.target-length": "40", "sampling.freq-mask": "24", "sampling.time-mask": "10",
    "optimizer.learning-rate": "1e-2", "optimizer.warmup-steps": "0", "optimizer.epochs": "3",
    "optimizer.decay-start": "2", "optimizer.decay-every": "5", "aggregation.first": "2", "aggregation.last": "3",
    "bootstrap": "20",
}  # fmt: skip
"""Settings that shorten a run to seconds; equal to those of other tests, so that compiled functions are reused."""


def train(config: Path, run: Path, *arguments: str) -> dict:
    """Trains the tiny model and returns the summary."""
    small = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    assert main.main(["train", str(config), "--run-dir", str(run), *small, *arguments]) == 0
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def audioset(tmp_path_factory) -> Path:
    """Returns the output directory of ``psla prepare audioset`` for a miniature AudioSet with one missing clip."""
    home = tmp_path_factory.mktemp("home")
    sets = miniature.clips()
    files = miniature.write_audio(home / "audio", sets)
    files[sets["unbalanced_train"][3].id].unlink()
    lists = miniature.write_lists(home, sets)
    out = home / "prepared"
    audio = ["--audio", str(home / "audio")]
    assert main.main(["prepare", "audioset", "--segments", *lists, *audio, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(("recipe", "clips"), [("audioset_balanced", 25), ("audioset_full", 31)])
def test_an_audioset_recipe_runs_on_what_prepare_writes(audioset, tmp_path, monkeypatch, capsys, recipe, clips):
    monkeypatch.setenv("PSLA_AUDIOSET", str(audioset))
    summary = train(CONFIGS / f"{recipe}.py", tmp_path / "run")
    assert next(iter(summary)) == "single (mean of epochs 1-3)"
    assert all(set(sets) == {"evaluation"} for sets in summary.values())
    assert all(sets["evaluation"]["num_clips"] == miniature.SIZES["eval"] for sets in summary.values())
    assert f"527 classes; {clips} training clips" in capsys.readouterr().out
    card = load_model(tmp_path / "run", trust=True).card
    assert card.vocabulary == Vocabulary.read("audioset")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["optimizer"]["loss"] == "bce"
    assert saved["sampling"]["balanced"] == (recipe == "audioset_full")


def test_without_the_variable_the_recipes_read_where_prepare_writes(audioset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PSLA_AUDIOSET", raising=False)
    shutil.copytree(audioset, tmp_path / "data" / "audioset")
    train(CONFIGS / "audioset_balanced.py", tmp_path / "run")
    assert "25 training clips" in capsys.readouterr().out
    lists = str(audioset.parent / "eval_segments.csv")
    shutil.rmtree(tmp_path / "data")
    assert main.main(["prepare", "audioset", "--segments", lists, "--audio", str(audioset.parent / "audio")]) == 0
    assert (tmp_path / "data" / "audioset" / "eval_data.json").is_file()


KINDS = ("buzz", "high", "low", "shh, quiet")


def recordings(folder: Path) -> Path:
    """Writes nine recordings into each of four class folders."""
    rng = np.random.default_rng(0)
    for number, kind in enumerate(KINDS):
        (folder / kind).mkdir(parents=True)
        for i in range(9):
            write_pcm16(folder / kind / f"{i}.wav", sounds.clip(number % 3, rng))
    return folder


def test_a_folder_of_recordings_trains_with_no_further_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "my sounds")
    assert main.main(["prepare", "folder", "my sounds"]) == 0
    config = tmp_path / "data" / "my sounds" / "config.py"
    assert f"to train on it: psla train '{config}'" in capsys.readouterr().out
    summary = train(config, tmp_path / "run")
    for sets in summary.values():
        for part in ("validation", "evaluation"):
            assert sets[part]["num_clips"] == 4
            assert 0 <= sets[part]["accuracy"] <= 1
    shown = capsys.readouterr().out
    assert "the loss is cross-entropy, and the best epoch is the most accurate" in shown
    assert load_model(tmp_path / "run", trust=True).card.vocabulary.names == KINDS
    evaluation = str(config.with_name("evaluation.json"))
    assert main.main(["evaluate", "run", "--data", evaluation, "--batch-size", "8", "--trust"]) == 0
    assert "accuracy: " in capsys.readouterr().out


def test_a_table_with_several_labels_trains_with_no_further_edit(tmp_path, capsys):
    folder = recordings(tmp_path / "sounds")
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["File", "Labels"])
        for number, kind in enumerate(KINDS):
            writer.writerows([f"{kind}/{i}.wav", f"{kind};{KINDS[number - 1]}" if i % 2 else kind] for i in range(9))
    out = ["--out", str(tmp_path / "out")]
    assert main.main(["prepare", "csv", str(tmp_path / "list.csv"), "--audio", str(folder), *out]) == 0
    assert main.main(["prepare", "csv", str(tmp_path / "list.csv"), "--audio", str(folder), *out]) == 2
    assert main.main(["prepare", "csv", str(tmp_path / "list.csv"), "--audio", str(folder), *out, "--force"]) == 0
    summary = train(tmp_path / "out" / "config.py", tmp_path / "run")
    assert all(sets["evaluation"]["accuracy"] is None for sets in summary.values())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]["loss"] == "bce"
    assert "accuracy" not in capsys.readouterr().out
