"""``psla calibrate``, and what ``psla tag`` and Python say of a model that it has calibrated."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sounds
from rich.console import Console
from sounds import VOCABULARY

import psla_jax
from psla_jax import cli
from psla_jax.calibration import CALIBRATION, Calibration, CalibrationError, Decider, Sigmoid
from psla_jax.checkpoints import find_model, fingerprint, load_model, read_card, save_model
from psla_jax.comparison import Request, evaluate
from psla_jax.tagging import output
from psla_jax.tagging.events import Rules
from psla_jax.tagging.tagger import Tagger
from psla_jax.training import split_model

CLIPS = 45


@pytest.fixture(scope="module")
def home(saved, tmp_path_factory) -> Path:
    """Clips of three classes, and a run directory whose weight average is a model."""
    folder = tmp_path_factory.mktemp("calibrated")
    sounds.make(folder / "data", train=3, validation=CLIPS, evaluation=3)
    shutil.copytree(saved("attention"), folder / "run" / "models" / "average")
    return folder


def calibrate(home: Path, *arguments: str) -> int:
    given = ["calibrate", str(home / "run"), "--data", str(home / "data" / "validation.json"), *map(str, arguments)]
    return cli.main(given)


@pytest.fixture(scope="module")
def calibrated(home) -> Calibration:
    """Of the model in ``home``, made once."""
    assert calibrate(home) == 0
    return Calibration.from_json((home / "run" / "models" / "average" / CALIBRATION).read_text())


@pytest.fixture(scope="module")
def tagger(home, calibrated) -> Tagger:
    """Of the calibrated model."""
    return psla_jax.load(home / "run")


def test_it_is_fitted_to_what_tagging_says_of_the_clips(home, calibrated, tagger):
    assert calibrated.fitted | {"sha256": ""} == {
        "data": "validation.json", "sha256": "", "clips": CLIPS, "unreadable": 0, "policy": "pad", "overlap": 0.5,
        "channel": "mean", "method": "sigmoid", "precision": None, "min_positives": 10, "folds": 5,
    }  # fmt: skip
    assert len(calibrated.fitted["sha256"]) == 64
    assert [(entry.mid, entry.positives) for entry in calibrated.classes] == list(zip(VOCABULARY.mids, (15, 15, 15, 0)))
    assert calibrated.classes[3].own is None
    assert calibrated.classes[3].figures == {}
    files = [str(home / "data" / f"validation{i:02d}.wav") for i in range(CLIPS)]
    present = np.array([found.present for found in tagger.tag_all(files)])
    truth = np.arange(CLIPS) % 3 == 0
    hits = (present[:, 0] & truth).sum()
    assert calibrated.classes[0].figures["fitted"]["recall"] == pytest.approx(hits / 15, rel=1e-5)
    assert calibrated.classes[0].figures["fitted"]["f1"] == pytest.approx(
        2 * hits / (present[:, 0].sum() + 15), rel=1e-5
    )


def test_python_gives_probabilities_and_decisions(home, calibrated, tagger):
    assert tagger.calibration == calibrated
    assert tagger.notes == ()
    np.testing.assert_array_equal(tagger.options.rules.threshold, calibrated.event_thresholds)
    found = tagger.tag(str(home / "data" / "validation02.wav"))
    np.testing.assert_array_equal(found.probabilities, calibrated.deciders.probabilities(found.scores))
    np.testing.assert_array_equal(found.present, found.scores >= calibrated.deciders.thresholds)
    best = found.top(4)
    assert [tag.probability for tag in best] == sorted(found.probabilities, reverse=True)
    assert {tag.mid for tag in best if tag.present} == {m for m, p in zip(VOCABULARY.mids, found.present) if p}
    assert f"{best[0].probability:.3f}  {best[0].name}" in str(found)
    plain = psla_jax.load(home / "run", calibrated=False).tag(str(home / "data" / "validation02.wav"))
    np.testing.assert_array_equal(plain.scores, found.scores)
    assert plain.probabilities is plain.present is plain.top()[0].probability is None
    own = psla_jax.load(home / "run", rules=Rules(threshold=0.7))
    assert own.options.rules.threshold == 0.7
    assert own.calibration == calibrated


def said_by_tag(home, capsys, *arguments: str) -> str:
    file = str(home / "data" / "validation00.wav")
    capsys.readouterr()
    assert cli.main(["tag", file, *map(str, arguments), "--model", str(home / "run")]) == 0
    return capsys.readouterr().out


def test_the_command_line_speaks_in_decisions(home, tagger, capsys, tmp_path):
    found = tagger.tag(str(home / "data" / "validation00.wav"))
    line = json.loads(said_by_tag(home, capsys, "--json", "-", "--csv", tmp_path / "a.csv", "--times", "always"))
    assert {tag["mid"] for tag in line["tags"]} == {m for m, p in zip(VOCABULARY.mids, found.present) if p}
    events = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert {(row["probability"], row["present"]) for row in events} <= {("", "")}
    line = said_by_tag(home, capsys, "--json", "-", "--csv", tmp_path / "b.csv", "--threshold", "1e-9")
    everything = json.loads(line)["tags"]
    index = [VOCABULARY.index(tag["mid"]) for tag in everything]
    assert [tag["probability"] for tag in everything] == pytest.approx(found.probabilities[index], abs=1e-6)
    assert [tag["score"] for tag in everything] == pytest.approx(found.scores[index], abs=1e-6)
    assert [tag["present"] for tag in everything] == found.present[index].tolist()
    rows = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert [(row["mid"], float(row["probability"]), row["present"]) for row in rows] == [
        (tag["mid"], tag["probability"], str(tag["present"]).lower()) for tag in everything
    ]
    shown = said_by_tag(home, capsys, "--threshold", "1e-9")
    assert shown.count("✓") == found.present.sum()
    assert "probability" in shown
    raw = said_by_tag(home, capsys, "--csv", "-", "--raw", "True")
    assert raw.splitlines()[0] == "clip,onset,offset,class,mid,score"


def test_events_begin_at_the_thresholds_of_their_classes(home, saved, tmp_path, capsys):
    """One class that never is, one that always is."""
    place = tmp_path / "model"
    shutil.copytree(saved("attention"), place)
    never, always = Decider(np.inf, Sigmoid(1.0, 0.0)), Decider(-1.0, Sigmoid(1.0, 0.0))
    made = Calibration.from_json((home / "run" / "models" / "average" / CALIBRATION).read_text())
    entries = [type(e)(e.mid, e.positives, always if i == 1 else never, {}) for i, e in enumerate(made.classes)]
    Calibration(made.model, made.fitted, {}, never, tuple(entries)).write(place)
    file = str(home / "data" / "validation02.wav")
    assert cli.main(["tag", file, "--model", str(place), "--times", "always", "--json", "-"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert {event["mid"] for event in line["events"]} == {"/t/high"}
    assert [tag["mid"] for tag in line["tags"]] == ["/t/high"]
    rare = psla_jax.load(place).tag(file, classes=[0, 2])
    console = Console(file=io.StringIO(), width=100)
    output.show(console, rare, output.Shown(threshold=rare.calibration.deciders.thresholds))
    assert "no class reaches its threshold; the most probable is" in console.file.getvalue()


def test_ensembles_and_other_policies_are_told_apart(home, saved, calibrated, capsys):
    file = str(home / "data" / "validation02.wav")
    assert psla_jax.load([home / "run", saved("other")]).calibration is None
    assert cli.main(["tag", file, "--csv", "-", "--model", str(home / "run"), str(saved("other"))]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "clip,onset,offset,class,mid,score"
    assert f"what {home / 'run'} was calibrated to is not of the ensemble" in said.err.replace("\n", " ")
    assert "was calibrated with --policy pad" in psla_jax.load(home / "run", policy="repeat").notes[0]
    assert psla_jax.load([saved("other"), saved("one head")]).notes == ()


def test_a_stale_calibration_is_refused(home, saved, calibrated, tmp_path, capsys):
    shutil.copytree(saved("other"), tmp_path / "model")
    calibrated.write(tmp_path / "model")
    with pytest.raises(CalibrationError, match="was fitted to another model than the one it lies in"):
        psla_jax.load(tmp_path / "model")
    assert psla_jax.load(tmp_path / "model", calibrated=False).calibration is None
    assert cli.main(["tag", str(home / "data" / "validation02.wav"), "--model", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fingerprint_is_of_settings_classes_and_weights(saved, tmp_path):
    own, other = (fingerprint(saved(kind), read_card(saved(kind))) for kind in ("attention", "other"))
    assert own != other
    copied = tmp_path / "copy"
    shutil.copytree(saved("attention"), copied)
    card = read_card(copied)
    assert fingerprint(copied, card) == own, "a copy is the same model"
    (copied / CALIBRATION).write_text("not of the model's scores")
    assert fingerprint(copied, card) == own
    next(file for file in sorted((copied / "weights").rglob("*")) if file.is_file()).write_bytes(b"changed")
    assert fingerprint(copied, card) != own


def test_a_model_that_is_saved_again_keeps_its_calibration(home, saved, calibrated, tmp_path, capsys):
    place = tmp_path / "model"
    shutil.copytree(find_model(home / "run"), place)
    model, other = load_model(place), load_model(saved("other"))
    save_model(place, model.card, *split_model(model.network))
    again = psla_jax.load(place)
    assert again.calibration.classes == calibrated.classes
    assert again.calibration.model == fingerprint(place, model.card)
    before = (place / CALIBRATION).read_text()
    save_model(place, other.card, *split_model(other.network))
    assert (place / CALIBRATION).read_text() == before, "nothing is lost"
    with pytest.raises(CalibrationError, match="was fitted to another model than the one it lies in"):
        psla_jax.load(place)
    assert psla_jax.load(place, calibrated=False).calibration is None


def test_a_calibration_is_replaced_only_if_asked_and_scores_are_kept(home, calibrated, tmp_path, capsys):
    assert calibrate(home) == 2
    assert f"{CALIBRATION} is there already: replace it with --overwrite True." in capsys.readouterr().err
    out = tmp_path / "c.json"
    assert calibrate(home, "--overwrite", "True", "--precision", "0.9", "--method", "isotonic", "--json", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "scores kept from an earlier call" in said
    assert "thresholds of a precision of 0.9, isotonic probabilities" in said
    assert "1 class without any clip, taking the shared ones unjudged: Never" in said
    place = find_model(home / "run") / CALIBRATION
    assert out.read_text() == place.read_text()
    found = json.loads(out.read_text())
    unreachable = [entry["mid"] for entry in found["classes"] if not entry["shared"] and entry["threshold"] is None]
    assert ("so that they are never present" in said) == bool(unreachable)
    for entry in found["classes"][:3]:
        assert (entry["figures"]["fitted"]["precision"] or 1) >= 0.9
    assert calibrate(home, "--overwrite", "True", "--json", "-") == 0
    assert capsys.readouterr().out == place.read_text() == calibrated.to_json(), "the same again, byte for byte"


def test_a_calibration_changes_no_score_that_is_kept(home, calibrated, capsys):
    request = Request((str(home / "run"),), str(home / "data" / "evaluation.json"), batch_size=8, bootstrap=0)
    first = evaluate(request)
    shutil.move(find_model(home / "run") / CALIBRATION, home / "aside")
    capsys.readouterr()
    assert evaluate(request).ensemble.mAP == first.ensemble.mAP
    assert "scores kept from an earlier call" in capsys.readouterr().out
    shutil.move(home / "aside", find_model(home / "run") / CALIBRATION)


def write(path: Path, records: list) -> list[str]:
    path.write_text(json.dumps({"data": records}))
    return ["--data", str(path)]


def test_mistakes_are_one_sentence(home, saved, tmp_path, capsys):
    model, wav = str(saved("attention")), str(home / "data" / "validation00.wav")
    (tmp_path / "broken.wav").write_text("no sound")
    shutil.copytree(model, tmp_path / "incomplete")
    shutil.rmtree(tmp_path / "incomplete" / "weights")
    good = ["--data", str(home / "data" / "validation.json")]
    mistakes = [
        ([model, *write(tmp_path / "a.json", [{"wav": wav, "labels": "/t/cow"}])], "which is not among the 4 classes"),
        ([model, *write(tmp_path / "b.json", [{"wav": wav, "labels": ""}] * 6)], "none of the 6 clips has a label"),
        ([model, *write(tmp_path / "c.json", [])], "has no clip"),
        ([model, *write(tmp_path / "d.json", [{"wav": wav, "labels": "/t/low"}] * 3)], "3 clips do not make 5 folds"),
        ([model, *write(tmp_path / "e.json", [{"wav": "broken.wav", "labels": "/t/low"}])], "none of the 1 clips"),
        ([str(tmp_path / "incomplete"), *good], "make the model again"),
        ([str(tmp_path), *good], "is neither a model directory"),
        ([model, str(home / "run"), *good], "psla calibrate takes one model, not 2"),
        ([model, *good, "--precision", "80"], "precision of a calibration is 80.0"),
        ([model, *good, "--json", str(tmp_path / "no" / "x.json")], "there is no folder"),
    ]
    for arguments, message in mistakes:
        assert cli.main(["calibrate", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("psla: ")
        assert error.count("\n") == 1
    assert not (Path(model) / CALIBRATION).exists()


def test_scores_that_are_no_numbers_are_refused(home, saved, monkeypatch, capsys):
    tag_all = Tagger.tag_all

    def nan(self, *given, **how):
        for number, found in enumerate(tag_all(self, *given, **how)):
            found.scores[1] = np.nan if number == 3 else 0.5
            yield found

    monkeypatch.setattr(Tagger, "tag_all", nan)
    data = str(home / "data" / "validation.json")
    assert cli.main(["calibrate", str(saved("other")), "--data", data, "--keep-scores", "False"]) == 2
    assert "validation03.wav for /t/high is nan: calibrate a model that is sound" in capsys.readouterr().err
