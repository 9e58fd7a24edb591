"""``psla calibrate``, and calibrated models in ``psla tag`` and in Python."""

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
from psla_jax.aggregation.evaluate_models import evaluate
from psla_jax.cli import main
from psla_jax.models.model_dir import find_model, fingerprint, load_model, read_card, save_model
from psla_jax.models.state import split_model
from psla_jax.tagging import formats
from psla_jax.tagging.calibration.model import CALIBRATION, Calibration, CalibrationError, Calibrator, Sigmoid
from psla_jax.tagging.events import Rules
from psla_jax.tagging.tagger import Tagger

CLIPS = 45


@pytest.fixture(scope="module")
def home(saved, tmp_path_factory) -> Path:
    """A directory with clips of three classes, and a run directory with a model."""
    folder = tmp_path_factory.mktemp("calibrated")
    sounds.make(folder / "data", train=3, validation=CLIPS, evaluation=3)
    shutil.copytree(saved("attention"), folder / "run" / "models" / "average")
    return folder


def calibrate(home: Path, *arguments: str) -> int:
    data = str(home / "data" / "validation.json")
    return main.main(["calibrate", str(home / "run"), "--data", data, *map(str, arguments)])


@pytest.fixture(scope="module")
def calibrated(home) -> Calibration:
    """The calibration of the model in ``home``."""
    assert calibrate(home) == 0
    return Calibration.from_json((home / "run" / "models" / "average" / CALIBRATION).read_text())


@pytest.fixture(scope="module")
def tagger(home, calibrated) -> Tagger:
    """The tagger of the calibrated model."""
    return psla_jax.load(home / "run")


def test_a_calibration_is_fitted_to_the_scores_of_tagging(home, calibrated, tagger):
    assert calibrated.fitted | {"sha256": ""} == {
        "data": "validation.json", "sha256": "", "clips": CLIPS, "unreadable": 0, "policy": "pad", "overlap": 0.5,
        "channel": "mean", "method": "sigmoid", "precision": None, "min_positives": 10, "folds": 5,
    }  # fmt: skip
    assert len(calibrated.fitted["sha256"]) == 64
    assert [(entry.mid, entry.positives) for entry in calibrated.classes] == list(zip(VOCABULARY.mids, (15, 15, 15, 0)))
    assert calibrated.classes[3].calibrator is None
    assert calibrated.classes[3].metrics == {}
    files = [str(home / "data" / f"validation{i:02d}.wav") for i in range(CLIPS)]
    present = np.array([tags.present for tags in tagger.tag_all(files)])
    truth = np.arange(CLIPS) % 3 == 0
    hits = (present[:, 0] & truth).sum()
    assert calibrated.classes[0].metrics["fitted"]["recall"] == pytest.approx(hits / 15, rel=1e-5)
    assert calibrated.classes[0].metrics["fitted"]["f1"] == pytest.approx(
        2 * hits / (present[:, 0].sum() + 15), rel=1e-5
    )


def test_python_gives_probabilities_and_decisions(home, calibrated, tagger):
    assert tagger.calibration == calibrated
    assert tagger.notes == ()
    np.testing.assert_array_equal(tagger.options.rules.threshold, calibrated.event_thresholds)
    tags = tagger.tag(str(home / "data" / "validation02.wav"))
    np.testing.assert_array_equal(tags.probabilities, calibrated.calibrators.probabilities(tags.scores))
    np.testing.assert_array_equal(tags.present, tags.scores >= calibrated.calibrators.thresholds)
    best = tags.top(4)
    assert [tag.probability for tag in best] == sorted(tags.probabilities, reverse=True)
    assert {tag.mid for tag in best if tag.present} == {m for m, p in zip(VOCABULARY.mids, tags.present) if p}
    assert f"{best[0].probability:.3f}  {best[0].name}" in str(tags)
    plain = psla_jax.load(home / "run", calibrated=False).tag(str(home / "data" / "validation02.wav"))
    np.testing.assert_array_equal(plain.scores, tags.scores)
    assert plain.probabilities is plain.present is plain.top()[0].probability is None
    own = psla_jax.load(home / "run", rules=Rules(threshold=0.7))
    assert own.options.rules.threshold == 0.7
    merging = psla_jax.load(home / "run", rules=Rules(min_gap=2.0))
    np.testing.assert_array_equal(merging.options.rules.threshold, calibrated.event_thresholds)
    assert merging.options.rules.min_gap == 2.0
    assert own.calibration == calibrated


def tag_output(home, capsys, *arguments: str) -> str:
    file = str(home / "data" / "validation00.wav")
    capsys.readouterr()
    assert main.main(["tag", file, *map(str, arguments), "--model", str(home / "run")]) == 0
    return capsys.readouterr().out


def test_the_command_line_gives_probabilities_and_decisions(home, tagger, capsys, tmp_path):
    tags = tagger.tag(str(home / "data" / "validation00.wav"))
    line = json.loads(tag_output(home, capsys, "--json", "-", "--csv", tmp_path / "a.csv", "--times", "always"))
    assert {tag["mid"] for tag in line["tags"]} == {m for m, p in zip(VOCABULARY.mids, tags.present) if p}
    events = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert {(row["probability"], row["present"]) for row in events} <= {("", "")}
    line = tag_output(home, capsys, "--json", "-", "--csv", tmp_path / "b.csv", "--threshold", "1e-9")
    everything = json.loads(line)["tags"]
    index = [VOCABULARY.index(tag["mid"]) for tag in everything]
    assert [tag["probability"] for tag in everything] == pytest.approx(tags.probabilities[index], abs=1e-6)
    assert [tag["score"] for tag in everything] == pytest.approx(tags.scores[index], abs=1e-6)
    assert [tag["present"] for tag in everything] == tags.present[index].tolist()
    rows = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert [(row["mid"], float(row["probability"]), row["present"]) for row in rows] == [
        (tag["mid"], tag["probability"], str(tag["present"]).lower()) for tag in everything
    ]
    shown = tag_output(home, capsys, "--threshold", "1e-9")
    assert shown.count("✓") == tags.present.sum()
    assert "probability" in shown
    raw = tag_output(home, capsys, "--csv", "-", "--raw")
    assert raw.splitlines()[0] == "clip,onset,offset,class,mid,score"


def test_events_use_the_thresholds_of_their_classes(home, saved, tmp_path, capsys):
    """Uses one class that is never present and one that always is."""
    path = tmp_path / "model"
    shutil.copytree(saved("attention"), path)
    never, always = Calibrator(np.inf, Sigmoid(1.0, 0.0)), Calibrator(-1.0, Sigmoid(1.0, 0.0))
    made = Calibration.from_json((home / "run" / "models" / "average" / CALIBRATION).read_text())
    entries = [type(e)(e.mid, e.positives, always if i == 1 else never, {}) for i, e in enumerate(made.classes)]
    Calibration(made.model, made.fitted, {}, never, tuple(entries)).write(path)
    file = str(home / "data" / "validation02.wav")
    assert main.main(["tag", file, "--model", str(path), "--times", "always", "--json", "-"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert {event["mid"] for event in line["events"]} == {"/t/high"}
    assert [tag["mid"] for tag in line["tags"]] == ["/t/high"]
    rare = psla_jax.load(path).tag(file, classes=[0, 2])
    console = Console(file=io.StringIO(), width=100)
    formats.show(console, rare, formats.OutputOptions(threshold=rare.calibration.calibrators.thresholds))
    assert "no class reaches its threshold; the most probable is" in console.file.getvalue()


def test_ensembles_and_other_policies(home, saved, calibrated, capsys):
    file = str(home / "data" / "validation02.wav")
    assert psla_jax.load([home / "run", saved("other")]).calibration is None
    assert main.main(["tag", file, "--csv", "-", "--model", str(home / "run"), str(saved("other"))]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "clip,onset,offset,class,mid,score"
    assert f"not calibrated: the calibration of {home / 'run'} is ignored" in printed.err.replace("\n", " ")
    assert "was calibrated with --policy pad" in psla_jax.load(home / "run", policy="repeat").notes[0]
    assert psla_jax.load([saved("other"), saved("one head")]).notes == ()


def test_a_stale_calibration_is_refused(home, saved, calibrated, tmp_path, capsys):
    shutil.copytree(saved("other"), tmp_path / "model")
    calibrated.write(tmp_path / "model")
    with pytest.raises(CalibrationError, match="its fingerprint does not match this directory: fit it again with"):
        psla_jax.load(tmp_path / "model")
    assert psla_jax.load(tmp_path / "model", calibrated=False).calibration is None
    assert main.main(["tag", str(home / "data" / "validation02.wav"), "--model", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fingerprint_depends_on_settings_classes_and_weights(saved, tmp_path):
    own, other = (fingerprint(saved(kind), read_card(saved(kind))) for kind in ("attention", "other"))
    assert own != other
    copied = tmp_path / "copy"
    shutil.copytree(saved("attention"), copied)
    card = read_card(copied)
    assert fingerprint(copied, card) == own, "a copy has the same fingerprint"
    (copied / CALIBRATION).write_text("not of the model's scores")
    assert fingerprint(copied, card) == own
    (copied / "weights.safetensors").write_bytes(b"changed")
    assert fingerprint(copied, card) != own


def test_a_model_that_is_saved_again_keeps_its_calibration(home, saved, calibrated, tmp_path, capsys):
    """The file is preserved. It is refused for a different model until it is fitted again."""
    path, data = tmp_path / "model", str(home / "data" / "validation.json")
    shutil.copytree(find_model(home / "run"), path)
    model, other = load_model(path), load_model(saved("other"))
    save_model(path, model.card, *split_model(model.network))
    assert Calibration.from_json((path / CALIBRATION).read_text()).classes == calibrated.classes
    before = (path / CALIBRATION).read_text()
    save_model(path, other.card, *split_model(other.network))
    assert (path / CALIBRATION).read_text() == before
    with pytest.raises(CalibrationError, match="its fingerprint does not match this directory"):
        psla_jax.load(path)
    assert psla_jax.load(path, calibrated=False).calibration is None
    assert main.main(["calibrate", str(path), "--data", data, "--overwrite"]) == 0
    assert psla_jax.load(path).calibration.model == fingerprint(path, other.card)


def test_a_calibration_is_replaced_only_with_overwrite_and_scores_are_cached(home, calibrated, tmp_path, capsys):
    assert calibrate(home) == 2
    assert f"{CALIBRATION} exists already: replace it with --overwrite." in capsys.readouterr().err
    out = tmp_path / "c.json"
    assert calibrate(home, "--overwrite", "--precision", "0.9", "--method", "isotonic", "--json", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "cached scores of an earlier call" in printed
    assert "thresholds with a precision of 0.9, isotonic probabilities" in printed
    assert "1 class without any clip (shared threshold and curve, not evaluated): Never" in printed
    path = find_model(home / "run") / CALIBRATION
    assert out.read_text() == path.read_text()
    content = json.loads(out.read_text())
    unreachable = [entry["mid"] for entry in content["classes"] if not entry["shared"] and entry["threshold"] is None]
    assert ("(never present)" in printed) == bool(unreachable)
    for entry in content["classes"][:3]:
        assert (entry["figures"]["fitted"]["precision"] or 1) >= 0.9
    assert calibrate(home, "--overwrite", "--json", "-") == 0
    assert capsys.readouterr().out == path.read_text() == calibrated.to_json(), "the file is reproduced byte for byte"


def test_a_result_that_cannot_be_kept_is_printed(home, calibrated, tmp_path, monkeypatch, capsys):
    """Neither a cache nor a model directory that cannot be written costs the user the calibration."""
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(find_model(home / "run"), model)
    (model / CALIBRATION).unlink()
    (model / CALIBRATION).mkdir()
    cache.write_text("a file in place of the directory")
    monkeypatch.setenv("PSLA_CACHE", str(cache))
    command = ["calibrate", str(model), "--data", str(home / "data" / "validation.json"), "--overwrite"]
    assert main.main([*command, "--json", "-"]) == 1
    printed = capsys.readouterr()
    assert printed.out == calibrated.to_json()
    assert "the scores cannot be cached (Not a directory" in printed.err
    assert printed.err.splitlines()[-1] == f"psla: Is a directory: {model / CALIBRATION}."
    assert sorted(path.name for path in model.iterdir()) == sorted(p.name for p in find_model(home / "run").iterdir())


def test_a_calibration_does_not_replace_its_datafile(home, tmp_path, capsys):
    data = shutil.copy(home / "data" / "validation.json", tmp_path)
    before = Path(data).read_text()
    command = ["calibrate", str(home / "run"), "--data", data, "--json", data, "--overwrite"]
    assert main.main(command) == 2
    assert f"--json {data} would replace the datafile" in capsys.readouterr().err
    assert Path(data).read_text() == before


def test_a_calibration_does_not_invalidate_cached_scores(home, calibrated, capsys):
    data = home / "data" / "evaluation.json"
    first = evaluate(home / "run", data, batch_size=8, bootstrap=0)
    shutil.move(find_model(home / "run") / CALIBRATION, home / "moved")
    capsys.readouterr()
    assert evaluate([home / "run"], data, batch_size=8, bootstrap=0).ensemble.mAP == first.ensemble.mAP
    assert "earlier call" in capsys.readouterr().out
    shutil.move(home / "moved", find_model(home / "run") / CALIBRATION)


def write(path: Path, records: list) -> list[str]:
    path.write_text(json.dumps({"data": records}))
    return ["--data", str(path)]


def test_mistakes_are_one_sentence(home, saved, tmp_path, capsys):
    model, wav = str(saved("attention")), str(home / "data" / "validation00.wav")
    (tmp_path / "broken.wav").write_text("no sound")
    shutil.copytree(model, tmp_path / "incomplete")
    shutil.rmtree(tmp_path / "incomplete" / "weights")
    (tmp_path / "incomplete" / "weights.safetensors").unlink()
    good = ["--data", str(home / "data" / "validation.json")]
    mistakes = [
        ([model, *write(tmp_path / "a.json", [{"wav": wav, "labels": "/t/cow"}])], "which is not among the 4 classes"),
        ([model, *write(tmp_path / "b.json", [{"wav": wav, "labels": ""}] * 6)], "none of the 6 clips has a label"),
        ([model, *write(tmp_path / "c.json", [])], "has no clip"),
        ([model, *write(tmp_path / "d.json", [{"wav": wav, "labels": "/t/low"}] * 3)], "3 clips are fewer than 5"),
        ([model, *write(tmp_path / "e.json", [{"wav": "broken.wav", "labels": "/t/low"}])], "none of the 1 clips"),
        ([str(tmp_path / "incomplete"), *good], "create the model again"),
        ([str(tmp_path), *good], "is neither a model directory"),
        ([model, str(home / "run"), *good], "psla calibrate takes one model, not 2"),
        ([model, *good, "--precision", "80"], "precision of a calibration is 80.0"),
        ([model, *good, "--json", str(tmp_path / "no" / "x.json")], "does not exist: create it"),
    ]
    for arguments, message in mistakes:
        assert main.main(["calibrate", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("psla: ")
        assert error.count("\n") == 1
    assert not (Path(model) / CALIBRATION).exists()


def test_scores_that_are_not_finite_are_refused(home, saved, monkeypatch, capsys):
    tag_all = Tagger.tag_all

    def nan(self, *arguments, **options):
        for number, tags in enumerate(tag_all(self, *arguments, **options)):
            tags.scores[1] = np.nan if number == 3 else 0.5
            yield tags

    monkeypatch.setattr(Tagger, "tag_all", nan)
    data = str(home / "data" / "validation.json")
    assert main.main(["calibrate", str(saved("other")), "--data", data, "--no-keep-scores"]) == 2
    assert "validation03.wav for /t/high is nan: check the model with psla check-model" in capsys.readouterr().err
