"""What people type: exit codes, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import sounds

from psla_jax import cli
from psla_jax.checkpoints import load_model
from psla_jax.commands.prepare import DATA_SETS
from psla_jax.scores import Scores
from psla_jax.training import split_model

TEMPLATE = """
from psla_jax.config import *
config = RunConfig(
    run_dir={run_dir!r},
    data=DataConfig(train={data!r} + "/train.json", validation={data!r} + "/validation.json",
                    evaluation={data!r} + "/evaluation.json", labels={data!r} + "/labels.csv",
                    batch_size=8, workers=0),
    frontend=FrontendConfig(target_length=40),
    model=ModelConfig(name="tiny:build"),
    sampling=SamplingConfig(freq_mask=24, time_mask=10),
    optimizer=OptimizerConfig(learning_rate=1e-2, epochs=2, warmup_steps=0),
    aggregation=AggregationConfig(first=1, last=2),
    bootstrap=20,
)
"""


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with data of its own and a config that trains on it."""
    sounds.make(tmp_path / "data")
    text = TEMPLATE.format(run_dir=str(tmp_path / "run"), data=str(tmp_path / "data"))
    (tmp_path / "config.py").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    sounds.make(home / "data")
    (home / "config.py").write_text(TEMPLATE.format(run_dir=str(home / "run"), data=str(home / "data")))
    assert cli.main(["train", str(home / "config.py")]) == 0
    return home


def complaint(capsys, arguments: list[str], code: int = 2) -> str:
    """Runs a command that has to fail; its one sentence on standard error."""
    try:
        ended = cli.main(arguments)
    except SystemExit as stopped:  # the argument parser's own way out, with the sentence in a frame
        ended, framed = stopped.code, " ".join(capsys.readouterr().err.replace("│", " ").split())
        return framed if ended == code else pytest.fail(framed)
    assert ended == code
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    assert "Traceback" not in error
    assert error.count("\n") == 1
    return error


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content["data"])
    path.write_text(json.dumps(content))


def wav(home: Path, samples: np.ndarray) -> None:
    soundfile.write(home / "data" / "train05.wav", samples, 16_000, subtype="FLOAT")


MISTAKES = {
    "no datafile": (lambda h: (h / "data/train.json").unlink(), "train.json"),
    "empty datafile": (lambda h: (h / "data/train.json").write_text(""), "train.json"),
    "no clips": (lambda h: (h / "data/train.json").write_text('{"data": []}'), "train.json"),
    "not JSON": (lambda h: (h / "data/train.json").write_text("wav,labels"), "train.json"),
    "unknown label": (
        lambda h: rewrite(h / "data/train.json", lambda d: d[5].update(labels="/t/cow")),
        "/t/cow",
    ),
    "no such clip": (lambda h: (h / "data/train05.wav").unlink(), "train05.wav"),
    "not audio": (lambda h: (h / "data/train05.wav").write_text("hello, this is text"), "train05.wav"),
    "empty file": (lambda h: (h / "data/train05.wav").write_bytes(b""), "train05.wav"),
    "no samples": (lambda h: wav(h, np.zeros(0)), "train05.wav"),
    "NaN": (lambda h: wav(h, np.full(5000, np.nan)), "train05.wav"),
    "no vocabulary": (lambda h: (h / "data/labels.csv").unlink(), "labels.csv"),
    "bad evaluation clip": (lambda h: (h / "data/evaluation03.wav").unlink(), "evaluation03.wav"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_end_before_training_in_one_sentence(home, capsys, mistake):
    spoil, named = MISTAKES[mistake]
    spoil(home)
    assert named in complaint(capsys, ["train", str(home / "config.py")])
    assert not (home / "run").exists()


FIELDS = {
    "--data.batch-size 10": "data.batch_size is 10, which 4 devices do not divide",
    "--data.batch-size 0": "data.batch_size is 0",
    "--aggregation.last 7": "aggregation.last is 7",
    "--sampling.mixup 2": "sampling.mixup is 2.0",
    "--model.name efficientnet-b9": "there is no model 'efficientnet-b9'",
    "--model.name nowhere:build": "'nowhere:build' cannot be imported",
    "--data.validation= --data.evaluation=": "data.validation and data.evaluation are both empty",
    "--data.train=": "data.train is empty",
    "--pretraining.source nowhere.pth": "tiny:build has no such weights",
}


@pytest.mark.parametrize("arguments", FIELDS)
def test_settings_that_cannot_work_are_named(home, capsys, arguments):
    pairs = [part for field in arguments.split("--") if field for part in ("--" + field.strip()).split("=", 1)]
    words = [word for part in pairs for word in (part.split(" ") if part else [""])]
    assert FIELDS[arguments] in complaint(capsys, ["train", str(home / "config.py"), *words])


CONFIGS = {
    "raise RuntimeError('oh')": "RuntimeError: oh",
    "x = 1": "has to assign a RunConfig",
    "from psla_jax.config import *\nconfig = RunConfig(sed=1)": "sed",
    "from psla_jax.config import *\nconfig = RunConfig(data=DataConfig(batch_size=0))": "data.batch_size is 0",
    "config = (": "SyntaxError",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_config_files_that_cannot_be_used_are_named(tmp_path, capsys, text):
    (tmp_path / "mine.py").write_text(text)
    error = complaint(capsys, ["train", str(tmp_path / "mine.py")])
    assert "mine.py" in error
    assert CONFIGS[text] in error


def test_usage(capsys, tmp_path):
    assert "nowhere.py" in complaint(capsys, ["train", str(tmp_path / "nowhere.py")])
    assert "config file first" in complaint(capsys, ["train"])
    assert "no command 'trian'" in complaint(capsys, ["trian"])
    assert "'esc50'" in complaint(capsys, ["prepare", "esc50"])
    assert "FSD50K" in complaint(capsys, ["prepare", "fsd50k", str(tmp_path)])
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


def test_prepare_alone_lists_the_data_sets(capsys):
    assert cli.main(["prepare"]) == 2
    assert cli.main(["prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n  {name} ") == 2 for name in DATA_SETS)


def test_a_data_set_that_cannot_be_prepared_is_one_sentence(tmp_path, capsys):
    empty, lists = tmp_path / "empty", tmp_path / "balanced_train_segments.csv"
    empty.mkdir()
    lists.write_text("-_abcdefghi, 30.000, 40.000, /m/09x0r,/m/04rlf\n")
    audio = ["--audio", str(empty)]
    assert f"line 1 of {lists}" in complaint(capsys, ["prepare", "audioset", "--segments", str(lists), *audio])
    assert "wants at least one name after --segments" in complaint(
        capsys, ["prepare", "audioset", "--segments", *audio]
    )
    assert "there is no audio file under" in complaint(capsys, ["prepare", "folder", str(empty)])
    assert "list.csv cannot be read" in complaint(capsys, ["prepare", "csv", str(empty / "list.csv"), *audio])
    assert list(empty.iterdir()) == []


def test_an_unknown_field_is_bad_usage(home, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(home / "config.py"), "--optimizer.learning-rat", "1"])
    assert stopped.value.code == 2
    assert "learning-rate" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(home, capsys, monkeypatch):
    from psla_jax import experiment

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    assert "start it again" in complaint(capsys, ["train", str(home / "config.py")], code=130)


def test_a_folder_that_cannot_be_written_is_named(home, capsys):
    (home / "file").write_text("not a folder")
    arguments = ["train", str(home / "config.py"), "--run-dir", str(home / "file" / "run")]
    assert str(home / "file" / "run") in complaint(capsys, arguments, code=1)


def test_training_ends_with_the_summary(trained, capsys):
    assert cli.main(["train", str(trained / "config.py")]) == 0
    shown = capsys.readouterr().out
    for row in ("best single (epoch", "weight average (epochs 1-2), statistics re-estimated", "plain", "ensemble"):
        assert row in shown
    assert "evaluation: 11 clips, 3 of 4 classes scored, 1 without a positive clip left out" in shown


def test_evaluate_prints_the_references_ensemble_summary(trained, capsys):
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    data, labels = (str(trained / "data" / name) for name in ("evaluation.json", "labels.csv"))
    arguments = [*models, str(trained / "run"), "--data", data, "--labels", labels, "--batch-size", "4"]
    assert cli.main(["evaluate", *arguments, "--trust", "True"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "---------------Ensemble Result Summary---------------"
    assert [line.split(" mAP")[0] for line in lines[1:5]] == [
        f"Model 0 {models[0]}", f"Model 1 {models[1]}", f"Model 2 {trained / 'run'}", "Ensemble 3 Models",
    ]  # fmt: skip
    import csv

    with open(trained / "run" / "wa_result.csv", newline="") as file:
        wanted = float(next(csv.DictReader(file))["evaluation_mAP"])
    assert float(lines[3].split("mAP: ")[1].split(",")[0]) == pytest.approx(wanted, abs=1e-6)


def test_evaluate_matches_classes_by_mid(trained, tmp_path, capsys):
    rows = (trained / "data" / "labels.csv").read_text().splitlines()
    reordered = [rows[0]] + [f"{i},{row.split(',', 1)[1]}" for i, row in enumerate(rows[:0:-1])]
    (tmp_path / "labels.csv").write_text("\n".join(reordered) + "\n")
    data = str(trained / "data" / "evaluation.json")
    figures = []
    for labels in (trained / "data" / "labels.csv", tmp_path / "labels.csv"):
        arguments = [str(trained / "run"), "--data", data, "--labels", str(labels), "--batch-size", "4"]
        assert cli.main(["evaluate", *arguments, "--trust", "True"]) == 0
        figures.append(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Model 0")))
    assert figures[0] == figures[1]
    (tmp_path / "more.csv").write_text((trained / "data" / "labels.csv").read_text() + "4,/t/cow,Cow\n")
    more = ["evaluate", str(trained / "run"), "--data", data, "--labels", str(tmp_path / "more.csv"), "--trust", "True"]
    assert "'/t/cow'" in complaint(capsys, [*more, "--batch-size", "4"])


def test_a_second_evaluation_takes_the_scores_kept_and_notices_what_changed(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    data = sounds.make(tmp_path / "data")
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002", "best")]
    arguments = ["evaluate", *models, "--data", str(data / "evaluation.json"), "--batch-size", "4", "--trust", "True"]
    shown = []
    for _ in range(2):
        assert cli.main(arguments) == 0
        shown.append(capsys.readouterr().out.splitlines())
    assert [line.endswith("(--keep-scores False makes them anew)") for line in shown[1][:3]] == [True] * 3
    assert shown[1][3:] == shown[0]
    assert not any("kept" in line for line in shown[0])
    assert cli.main([*arguments, "--keep-scores", "False"]) == 0
    assert capsys.readouterr().out.splitlines() == shown[0]
    samples, rate = soundfile.read(data / "evaluation03.wav")
    soundfile.write(data / "evaluation03.wav", samples[::-1], rate)
    assert cli.main(arguments) == 0
    assert "kept" not in capsys.readouterr().out


def test_scores_are_saved_by_clip_id_and_not_over_a_file(trained, tmp_path, capsys):
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    data = ["--data", str(trained / "data" / "evaluation.json"), "--batch-size", "4", "--trust", "True"]
    saved = tmp_path / "new" / "scores.npz"
    assert cli.main(["evaluate", *models, *data, "--save", str(saved)]) == 0
    assert f"{saved}: the scores of them together, by clip id" in capsys.readouterr().out
    scores, ensemble = Scores.load(saved), Scores.load(trained / "run" / "scores" / "evaluation_ensemble.npz")
    np.testing.assert_array_equal(scores.clips, ensemble.clips)
    np.testing.assert_allclose(scores.scores, ensemble.scores, atol=1e-6)
    assert scores.mids == ensemble.mids == sounds.VOCABULARY.mids
    again = complaint(capsys, ["evaluate", *models, *data, "--save", str(saved)])
    assert "scores are not overwritten" in again


def test_average_is_that_of_the_run_plain_and_with_statistics_of_its_own(trained, tmp_path, capsys):
    epochs = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    common = ["--trust", "True"]
    assert cli.main(["average", *epochs, str(tmp_path / "plain"), *common]) == 0
    data = ["--data", str(trained / "data" / "train.json"), "--batch-size", "8"]
    assert cli.main(["average", *epochs, str(tmp_path / "own"), *data, *common]) == 0
    assert "average of 2 models, statistics re-estimated" in capsys.readouterr().out
    for mine, theirs in (("plain", "plain_average"), ("own", "average")):
        trees = [
            split_model(load_model(path, trust=True).network)
            for path in (tmp_path / mine, trained / "run" / "models" / theirs)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *trees)
    assert cli.main(["check-model", str(tmp_path / "own"), *common]) == 0
    assert "verified: 4 scores" in capsys.readouterr().out
    assert "is there already" in complaint(capsys, ["average", *epochs, str(tmp_path / "plain"), *common])
    assert "psla average wants two models or more" in complaint(capsys, ["average", *epochs])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    overwrite = ["average", *epochs, str(tmp_path / "mine"), *common, "--overwrite", "True"]
    assert "is no model, so it is not replaced" in complaint(capsys, overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert cli.main(["average", *epochs, str(tmp_path / "plain"), *common, "--overwrite", "True"]) == 0
    described = json.loads((tmp_path / "own" / "model.json").read_text())
    described["vocabulary"].reverse()
    (tmp_path / "own" / "model.json").write_text(json.dumps(described))
    mixed = ["average", epochs[0], str(tmp_path / "own"), str(tmp_path / "mixed"), *common]
    assert "in their classes, so their weights cannot be averaged" in complaint(capsys, mixed)
    assert not (tmp_path / "mixed").exists()


def test_a_runs_finished_models_can_be_verified(trained, capsys):
    for name in ("average", "plain_average", "best"):
        assert cli.main(["check-model", str(trained / "run" / "models" / name), "--trust", "True"]) == 0
    assert "verified: 4 scores" in capsys.readouterr().out
    epoch = ["check-model", str(trained / "run" / "models" / "epoch_001"), "--trust", "True"]
    assert "carries no scores of the test sound" in complaint(capsys, epoch)


def test_export_wants_a_model_with_official_names(trained, tmp_path, capsys):
    custom = ["export", str(trained / "run"), str(tmp_path / "out.pth")]
    assert "--trust" in complaint(capsys, custom)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_complains_of_models_that_are_none(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    data = str(trained / "data" / "evaluation.json")
    assert "no model at" in complaint(capsys, ["evaluate", "nowhere", "--data", data])
    assert "--trust" in complaint(capsys, ["evaluate", str(trained / "run"), "--data", data])


@pytest.mark.parametrize("command", [*cli.COMMANDS, "", *(f"prepare {name}" for name in DATA_SETS)])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom psla_jax import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'flax', 'grain', 'torch', 'orbax', 'sklearn'} & set(sys.modules), 'heavy'\n"
    )
    arguments = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert "psla" in done.stdout
    assert not command.startswith("prepare ") or f"Example: psla {command} " in " ".join(done.stdout.split())
