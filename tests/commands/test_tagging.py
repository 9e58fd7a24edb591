"""``psla tag`` as people type it."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from flax import nnx
from sounds import VOCABULARY

from psla_jax import cli
from psla_jax.checkpoints import ModelCard, save_model
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import tagger
from psla_jax.tagging.folder import Results
from psla_jax.training import split_model

MODEL = ModelConfig("efficientnet-tiny", "attention", 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and a folder of five recordings of which one is broken and one is longer than a window."""
    folder = tmp_path_factory.mktemp("home")
    network = tagger.from_config(MODEL, len(VOCABULARY), np.float32, nnx.Rngs(0))
    save_model(folder / "model", ModelCard(MODEL, FrontendConfig(96), VOCABULARY, {}), *split_model(network))
    rng = np.random.default_rng(0)
    (folder / "in" / "sub").mkdir(parents=True)
    for name, seconds in (("a.wav", 0.5), ("b.flac", 0.9), ("d.wav", 3.0), ("sub/e.wav", 0.7)):
        soundfile.write(folder / "in" / name, rng.normal(0, 0.1, round(22_050 * seconds)), 22_050)
    (folder / "in" / "c.wav").write_text("no sound")
    return folder


def tag(home, *arguments: str) -> int:
    return cli.main(["tag", *map(str, arguments), "--model", str(home / "model"), "--threshold", "0.1"])


def test_a_folder_goes_to_every_format_and_its_bad_file_is_one_line(home, tmp_path, capsys):
    out = tmp_path
    places = ["--json", out / "t.json", "--csv", out / "t.csv", "--rttm", out / "t.rttm", "--audacity", out / "labels"]
    assert tag(home, home / "in", *places, "--embeddings", out / "embeddings") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"psla: {home / 'in' / 'c.wav'} cannot be read as audio (Format not recognised): convert it to WAV or FLAC, or "
        "leave it out.",
        "1 of 5 recordings could not be tagged",
    ]
    lines = [json.loads(line) for line in (out / "t.json").read_text().splitlines()]
    assert [line["clip"] for line in lines] == [
        str(home / "in" / n) for n in ("a.wav", "b.flac", "c.wav", "d.wav", "sub/e.wav")
    ]
    assert [("error" in line, "events" in line) for line in lines] == [
        (False, False), (False, False), (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert [line.get("duration") for line in lines] == [0.5, 0.9, None, 3.0, 0.7]
    with open(out / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == {line["clip"] for line in lines if "error" not in line}
    short = [row for row in rows if row["clip"].endswith("a.wav")]
    assert [float(row["score"]) for row in short] == [t["score"] for t in lines[0]["tags"]]
    assert [(row["onset"], row["offset"]) for row in short] == [("0.000", "0.500")] * 4
    assert len((out / "t.rttm").read_text().splitlines()) == len(rows)
    assert sorted(p.name for p in (out / "labels").rglob("*.txt")) == [
        f"{n}.txt" for n in ("a.wav", "b.flac", "d.wav", "e.wav")
    ]
    with np.load(out / "embeddings" / "sub" / "e.wav.npz") as file:
        assert file["frames"].shape == (3, 320)


def test_an_interrupted_folder_ends_as_if_it_had_not_been(home, tmp_path, monkeypatch, capsys):
    assert tag(home, home / "in", "--csv", tmp_path / "whole.csv") == 1
    add, count = Results.add, []

    def interrupted(self, clip, texts, **how):
        count.append(clip)
        if len(count) == 4:
            raise KeyboardInterrupt
        add(self, clip, texts, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", interrupted)
        assert tag(home, home / "in", "--csv", tmp_path / "t.csv") == 130
    assert (tmp_path / "t.csv.progress").exists()
    capsys.readouterr()
    assert tag(home, home / "in", "--csv", tmp_path / "t.csv") == 1, "the bad file was among those done before"
    said = capsys.readouterr().err
    assert "3 of 5 recordings are done already" in said
    assert "1 of 5 recordings could not be tagged" in said
    assert (tmp_path / "t.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "whole.csv"]


def test_the_screen(home, capsys):
    assert tag(home, home / "in" / "a.wav", "--top", "2") == 0
    shown = capsys.readouterr().out
    assert "0:00.5" in shown
    assert sum(name in shown for name in VOCABULARY.names) == 2
    assert tag(home, home / "in" / "a.wav", home / "in" / "d.wav", "--csv", "-", "--classes", "noise") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["mid"] for row in rows} == {"/t/noise"}
    assert len({row["clip"] for row in rows}) == 2


def test_pictures_of_a_folder(home, tmp_path, capsys):
    assert tag(home, home / "in", "--plot", tmp_path / "pictures", "--top", "2") == 1
    assert capsys.readouterr().out == ""
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [f"pictures/{name}.png" for name in ("a.wav", "b.flac", "d.wav", "sub/e.wav")]
    assert tag(home, home / "in", "--plot", tmp_path / "pictures") == 2
    assert "pictures is there already" in capsys.readouterr().err


def test_pictures_without_what_draws_them_are_refused_before_any_work(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["tag", str(home / "in"), "--model", "nowhere", "--plot", str(tmp_path / "pictures")]) == 2
    said = capsys.readouterr().err
    assert "pip install 'psla_jax[plot]'" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "missing file": (["nowhere.wav"], 1, "nowhere.wav is missing"),
    "no audio": (["empty"], 2, "empty has no audio in it"),
    "class": (["in/a.wav", "--classes", "Nose"], 2, "did you mean 'noise'"),
    "ontology": (["in/a.wav", "--ontology", "none.json"], 2, "none.json cannot be read"),
    "threshold": (["in/a.wav", "--min-gap", "-1"], 2, "min_gap of events is -1.0"),
    "overlap": (["in/a.wav", "--overlap", "1"], 2, "overlap of windows is 1.0"),
    "smooth": (["in/a.wav", "--smooth", "2"], 2, "smooth of events is 2"),
    "top": (["in/a.wav", "--top", "0"], 2, "--top is 0"),
    "two screens": (["in/a.wav", "--csv", "-", "--json", "-"], 2, "would mix on the screen"),
    "folder on screen": (["in/a.wav", "--plot", "-"], 2, "--plot is -, and a folder cannot go to the screen"),
    "same file": (["in/a.wav", "--csv", "x.txt", "--json", "./x.txt"], 2, "--json and --csv are both x.txt"),
    "file and folder": (["in/a.wav", "--csv", "x", "--plot", "x"], 2, "--csv and --plot are both x"),
    "sound for ontology": (["in/a.wav", "--ontology", "in/b.flac"], 2, "ontology.json (it is no text): download"),
    "there already": (["in/a.wav", "--csv", "in/b.flac"], 2, "b.flac is there already"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(home, capsys, monkeypatch, mistake):
    monkeypatch.chdir(home)
    (home / "empty").mkdir(exist_ok=True)
    arguments, code, message = MISTAKES[mistake]
    assert tag(home, *arguments) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("psla: ")


def test_an_incomplete_model_is_one_sentence(home, capsys, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "weights")
    assert cli.main(["tag", str(home / "in" / "a.wav"), "--model", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_processes_share_a_folder_and_the_last_one_joins_what_all_have_found(home, tmp_path, capsys):
    assert tag(home, home / "in", "--csv", tmp_path / "one.csv", "--json", tmp_path / "one.json") == 1
    codes = []
    for index in (1, 0):
        together = ("--distributed.processes", "2", "--distributed.index", index)
        places = ("--csv", tmp_path / "two.csv", "--json", tmp_path / "two.json", "--embeddings", tmp_path / "e")
        codes.append(tag(home, home / "in", *places, *together))
        assert (tmp_path / "two.csv").exists() is (index == 0)
    assert codes == [0, 1]  # The bad recording is the third of them.
    for kind in ("csv", "json"):
        assert (tmp_path / f"two.{kind}").read_bytes() == (tmp_path / f"one.{kind}").read_bytes()
    assert "two.csv, " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "one.csv", "one.json", "two.csv", "two.json"]
    assert len(list((tmp_path / "e").rglob("*.npz"))) == 4
