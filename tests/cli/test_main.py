"""Commands of ``psla``: exit codes, and one sentence for every user error."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import measures
import numpy as np
import pytest
import soundfile
import sounds
import tiny
from tolerance import assert_trees_close

import psla_jax
from psla_jax.cli import main, train_evaluate
from psla_jax.cli.prepare import DATA_SETS
from psla_jax.data import datafile
from psla_jax.evaluation.evaluators import Evaluators
from psla_jax.evaluation.scores import Scores
from psla_jax.models.model_dir import load_model
from psla_jax.models.state import split_model

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
    """Directory with a data set, and a config that trains on it."""
    sounds.make(tmp_path / "data")
    text = TEMPLATE.format(run_dir=str(tmp_path / "run"), data=str(tmp_path / "data"))
    (tmp_path / "config.py").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Directory like `home` with a finished run in ``run``."""
    home = tmp_path_factory.mktemp("trained")
    sounds.make(home / "data")
    (home / "config.py").write_text(TEMPLATE.format(run_dir=str(home / "run"), data=str(home / "data")))
    assert main.main(["train", str(home / "config.py")]) == 0
    return home


def complaint(capsys, arguments: list[str], code: int = 2) -> str:
    """Runs a command that must fail with exit code `code`; returns its error message of one sentence."""
    try:
        ended = main.main(arguments)
    except SystemExit as stopped:  # tyro exits on its own and prints the message in a frame.
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
    "--data.batch-size 0": "data.batch_size is 0",
    "--aggregation.last 7": "aggregation.last is 7",
    "--sampling.mixup 2": "sampling.mixup is 2.0",
    "--model.name efficientnet-b9": "model.name is 'efficientnet-b9': 'efficientnet-b9' is unknown: choose one of",
    "--model.name nowhere:build": "'nowhere:build' cannot be imported",
    "--data.validation= --data.evaluation=": "data.validation and data.evaluation are both empty",
    "--data.train=": "data.train is empty",
    "--metrics f1": "metrics is 'f1': 'f1' is unknown: choose one of lwlrap, micro_f1, macro_f1",
    "--select lwlrap": "select is 'lwlrap': choose one of mAP, mAUC",
    "--pretraining.source nowhere.pth": "tiny:build has no such weights",
}


@pytest.mark.parametrize("arguments", FIELDS)
def test_settings_that_cannot_work_are_named(home, capsys, arguments):
    pairs = [part for field in arguments.split("--") if field for part in ("--" + field.strip()).split("=", 1)]
    words = [word for part in pairs for word in (part.split(" ") if part else [""])]
    assert FIELDS[arguments] in complaint(capsys, ["train", str(home / "config.py"), *words])


CONFIGS = {
    "raise RuntimeError('oh')": "RuntimeError: oh",
    "x = 1": "must assign a RunConfig",
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
    assert "needs a config as its first argument, for example: psla train demo" in complaint(capsys, ["train"])
    assert "needs a config as its first argument" in complaint(capsys, ["train", "--seed", "1"])
    assert "no command 'trian'" in complaint(capsys, ["trian"])
    assert "'esc50'" in complaint(capsys, ["prepare", "esc50"])
    assert "FSD50K" in complaint(capsys, ["prepare", "fsd50k", str(tmp_path)])
    assert main.main([]) == 2
    assert main.main(["--version"]) == 0


def test_the_help_lists_every_command_once(capsys):
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n  {name} ") == 1 for name in main.COMMANDS)
    assert len(main.COMMANDS) == sum(map(len, main.GROUPS.values()))


@pytest.mark.parametrize(
    "name", ["audioset_balanced", "audioset_full", "audioset_plus", "demo", "fsd50k", "fsd50k_plus"]
)
def test_a_packaged_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_evaluate.read_config(name).run_dir == f"runs/{name}"


def test_a_config_file_takes_precedence_over_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert train_evaluate.read_config("demo").run_dir == "runs/demo"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("from psla_jax.config import RunConfig\nconfig = RunConfig(run_dir='own')\n")
    assert train_evaluate.read_config("demo").run_dir == "own"


def test_configs_of_an_installed_package_are_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "psla_jax"
    for folder, run_dir in ((package / "configs", "inside"), (tmp_path / "configs", "beside")):
        folder.mkdir(parents=True)
        for name in ("demo", "__init__", run_dir):
            text = f"from psla_jax.config import RunConfig\nconfig = RunConfig(run_dir={run_dir!r})\n"
            (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(train_evaluate.importlib.resources, "files", lambda name: tmp_path / name)
    assert set(train_evaluate.packaged_configs()) == {"demo", "inside"}
    (tmp_path / "pyproject.toml").touch()
    assert set(train_evaluate.packaged_configs()) == {"demo", "inside", "beside"}
    assert train_evaluate.read_config("demo").run_dir == "inside"


@pytest.mark.parametrize("name", ["dmeo", "demo.py", "nowhere/demo"])
def test_the_error_for_an_unknown_config_lists_the_packaged_ones(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    listed = "audioset_balanced, audioset_full, audioset_plus, demo, fsd50k, fsd50k_plus"
    expected = f"psla: there is no config file {name}: name a file, or one of {listed}.\n"
    assert complaint(capsys, ["train", name]) == expected


def test_the_help_of_train_shows_the_values_of_the_config(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, run_dir in (("demo", "runs/demo"), ("CONFIG.py", "runs/run")):
        with pytest.raises(SystemExit) as ended:
            main.main(["train", name, "--help"])
        assert ended.value.code == 0
        assert f"(default: {run_dir})" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_prepare_alone_lists_the_data_sets(capsys):
    assert main.main(["prepare"]) == 2
    assert main.main(["prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n  {name} ") == 2 for name in DATA_SETS)


def test_a_data_set_that_cannot_be_prepared_is_one_sentence(tmp_path, capsys):
    empty, lists = tmp_path / "empty", tmp_path / "balanced_train_segments.csv"
    empty.mkdir()
    lists.write_text("-_abcdefghi, 30.000, 40.000, /m/09x0r,/m/04rlf\n")
    audio = ["--audio", str(empty)]
    assert f"line 1 of {lists}" in complaint(capsys, ["prepare", "audioset", "--segments", str(lists), *audio])
    assert "needs at least one name after --segments" in complaint(
        capsys, ["prepare", "audioset", "--segments", *audio]
    )
    assert "there is no audio file under" in complaint(capsys, ["prepare", "folder", str(empty)])
    assert "list.csv cannot be read" in complaint(capsys, ["prepare", "csv", str(empty / "list.csv"), *audio])
    assert list(empty.iterdir()) == []


def test_an_unknown_field_is_bad_usage(home, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["train", str(home / "config.py"), "--optimizer.learning-rat", "1"])
    assert stopped.value.code == 2
    assert "learning-rate" in capsys.readouterr().err


def test_an_interrupt_says_how_to_resume(home, capsys, monkeypatch):
    from psla_jax.training import loop

    def interrupted(config, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    assert "run the same command again to resume" in complaint(capsys, ["train", str(home / "config.py")], code=130)


def test_a_folder_that_cannot_be_written_is_named(home, capsys):
    (home / "file").write_text("not a folder")
    arguments = ["train", str(home / "config.py"), "--run-dir", str(home / "file" / "run")]
    assert str(home / "file" / "run") in complaint(capsys, arguments, code=1)


def test_training_ends_with_the_summary(trained, capsys):
    assert main.main(["train", str(trained / "config.py")]) == 0
    shown = capsys.readouterr().out
    for row in ("best single (epoch", "weight average (epochs 1-2), statistics re-estimated", "plain", "ensemble"):
        assert row in shown
    assert "evaluation: 11 clips, 3 of 4 classes scored, 1 without a positive clip left out" in shown


def test_evaluate_prints_the_references_ensemble_summary(trained, capsys):
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    data, labels = (str(trained / "data" / name) for name in ("evaluation.json", "labels.csv"))
    arguments = [*models, str(trained / "run"), "--data", data, "--labels", labels, "--batch-size", "4"]
    assert main.main(["evaluate", *arguments, "--trust"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "---------------Ensemble Result Summary---------------"
    assert [line.split(" mAP")[0] for line in lines[1:5]] == [
        f"Model 0 {models[0]}", f"Model 1 {models[1]}", f"Model 2 {trained / 'run'}", "Ensemble 3 Models",
    ]  # fmt: skip
    with open(trained / "run" / "wa_result.csv", newline="") as file:
        expected = float(next(csv.DictReader(file))["evaluation_mAP"])
    assert float(lines[3].split("mAP: ")[1].split(",")[0]) == pytest.approx(expected, abs=1e-6)


def test_evaluate_explains_relative_paths_and_counts_repeats(tmp_path, capsys, monkeypatch):
    data, model = sounds.make(tmp_path / "data"), str(tiny.save(tmp_path / "model", seed=0))
    records = [(f"evaluation0{i}.wav", ["/t/low"]) for i in (0, 3, 3, 6)]
    (tmp_path / "lists").mkdir()
    datafile.write(tmp_path / "lists" / "eval.json", [*records, ("./evaluation03.wav", ["/t/low"])])
    arguments = ["evaluate", model, "--data", str(tmp_path / "lists" / "eval.json"), "--batch-size", "4"]
    monkeypatch.chdir(tmp_path)
    message = complaint(capsys, arguments)
    assert "none of the 5 clips can be read, such as" in message
    assert "relative ones start at its own folder" in message
    monkeypatch.chdir(data)
    assert main.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"its relative paths are in the working directory, {data}, instead of the folder of the datafile" in shown
    assert "2 of 5 records list a clip again, which counts several times in metrics" in shown
    assert main.main(["evaluate", model, "--data", str(data / "evaluation.json"), "--batch-size", "4"]) == 0
    shown = capsys.readouterr().out
    assert "relative paths" not in shown
    assert "again, which" not in shown


def test_evaluate_matches_classes_by_mid(trained, tmp_path, capsys):
    rows = (trained / "data" / "labels.csv").read_text().splitlines()
    reordered = [rows[0]] + [f"{i},{row.split(',', 1)[1]}" for i, row in enumerate(rows[:0:-1])]
    (tmp_path / "labels.csv").write_text("\n".join(reordered) + "\n")
    data = str(trained / "data" / "evaluation.json")
    lines = []
    for labels in (trained / "data" / "labels.csv", tmp_path / "labels.csv"):
        arguments = [str(trained / "run"), "--data", data, "--labels", str(labels), "--batch-size", "4"]
        assert main.main(["evaluate", *arguments, "--trust"]) == 0
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("Model 0")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    (tmp_path / "more.csv").write_text((trained / "data" / "labels.csv").read_text() + "4,/t/cow,Cow\n")
    more = ["evaluate", str(trained / "run"), "--data", data, "--labels", str(tmp_path / "more.csv"), "--trust"]
    assert "'/t/cow'" in complaint(capsys, [*more, "--batch-size", "4"])


def test_scores_are_reused_until_the_data_change(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    data = sounds.make(tmp_path / "data")
    models = [str(tiny.save(tmp_path / f"model {seed}", seed=seed)) for seed in range(3)]
    arguments = ["evaluate", *models, "--data", str(data / "evaluation.json"), "--batch-size", "4"]
    shown = []
    for _ in range(2):
        assert main.main(arguments) == 0
        shown.append(capsys.readouterr().out.splitlines())
    assert all("--no-keep-scores" in line for line in shown[1][:3])
    assert shown[1][3:] == shown[0]
    assert not any("--no-keep-scores" in line for line in shown[0])
    assert main.main([*arguments, "--no-keep-scores"]) == 0
    assert capsys.readouterr().out.splitlines() == shown[0]
    samples, rate = soundfile.read(data / "evaluation03.wav")
    soundfile.write(data / "evaluation03.wav", samples[::-1], rate)
    assert main.main(arguments) == 0
    assert "--no-keep-scores" not in capsys.readouterr().out


def test_scores_are_saved_by_clip_id_and_not_over_a_file(trained, tmp_path, capsys):
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    data = ["--data", str(trained / "data" / "evaluation.json"), "--batch-size", "4", "--trust"]
    saved = tmp_path / "new" / "scores.npz"
    assert main.main(["evaluate", *models, *data, "--save", str(saved)]) == 0
    assert f"{saved}: the scores of the ensemble, by clip id" in capsys.readouterr().out
    scores, ensemble = Scores.load(saved), Scores.load(trained / "run" / "scores" / "evaluation_ensemble.npz")
    np.testing.assert_array_equal(scores.clips, ensemble.clips)
    np.testing.assert_allclose(scores.scores, ensemble.scores, atol=1e-6)
    assert scores.mids == ensemble.mids == sounds.VOCABULARY.mids
    again = complaint(capsys, ["evaluate", *models, *data, "--save", str(saved)])
    assert "results are not overwritten" in again


def test_results_per_class_and_the_confusion_matrix_are_those_of_the_run(trained, tmp_path, capsys):
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    command = ["evaluate", *models, "--trust", "--batch-size", "4", "--data"]
    files = ["--per-class", str(tmp_path / "new" / "classes.csv"), "--confusion", str(tmp_path / "confusion.csv")]
    assert main.main([*command, str(trained / "data" / "evaluation.json"), *files]) == 0
    assert "classes.csv: the results of the ensemble for every class" in capsys.readouterr().out
    confusion = (tmp_path / "confusion.csv").read_text()
    assert confusion == (trained / "run" / "confusion" / "evaluation_ensemble.csv").read_text()
    tables = []
    for path in (tmp_path / "new" / "classes.csv", trained / "run" / "per_class" / "evaluation_ensemble.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    for mine, theirs in zip(*tables, strict=True):
        assert mine.pop("class") == theirs.pop("class")
        assert mine.pop("mid") == theirs.pop("mid")
        assert [float(cell or -1) for cell in mine.values()] == pytest.approx(
            [float(cell or -1) for cell in theirs.values()], abs=1e-6
        )
    two = tmp_path / "two.json"
    two.write_text((trained / "data" / "evaluation.json").read_text())
    rewrite(two, lambda clips: clips[3].update(labels="/t/low,/t/noise"))
    message = complaint(capsys, [*command, str(two), "--confusion", str(tmp_path / "other.csv")])
    assert "evaluation03.wav 2 labels, but a confusion matrix needs one per clip" in message


def test_average_equals_that_of_the_run_with_and_without_reestimated_statistics(trained, tmp_path, capsys):
    epochs = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    common = ["--trust"]
    assert main.main(["average", *epochs, str(tmp_path / "plain"), *common]) == 0
    data = ["--data", str(trained / "data" / "train.json"), "--batch-size", "8"]
    assert main.main(["average", *epochs, str(tmp_path / "own"), *data, *common]) == 0
    assert "average of 2 models, statistics re-estimated" in capsys.readouterr().out
    for mine, theirs in (("plain", "plain_average"), ("own", "average")):
        trees = [
            split_model(load_model(path, trust=True).network)
            for path in (tmp_path / mine, trained / "run" / "models" / theirs)
        ]
        assert_trees_close(*trees, 1e-5)
    assert main.main(["check-model", str(tmp_path / "own"), *common]) == 0
    assert "verified: 4 scores" in capsys.readouterr().out
    assert "exists: choose another path" in complaint(capsys, ["average", *epochs, str(tmp_path / "plain"), *common])
    assert "psla average needs at least two models" in complaint(capsys, ["average", *epochs])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    overwrite = ["average", *epochs, str(tmp_path / "mine"), *common, "--overwrite"]
    assert "is not a model, so it is not replaced" in complaint(capsys, overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert main.main(["average", *epochs, str(tmp_path / "plain"), *common, "--overwrite"]) == 0
    described = json.loads((tmp_path / "own" / "model.json").read_text())
    described["vocabulary"].reverse()
    (tmp_path / "own" / "model.json").write_text(json.dumps(described))
    mixed = ["average", epochs[0], str(tmp_path / "own"), str(tmp_path / "mixed"), *common]
    assert "in their classes, so their weights cannot be averaged" in complaint(capsys, mixed)
    assert not (tmp_path / "mixed").exists()


def test_a_runs_finished_models_can_be_verified(trained, capsys):
    for name in ("average", "plain_average", "best"):
        assert main.main(["check-model", str(trained / "run" / "models" / name), "--trust"]) == 0
    assert "verified: 4 scores" in capsys.readouterr().out
    epoch = ["check-model", str(trained / "run" / "models" / "epoch_001"), "--trust"]
    assert "carries no scores of the test sound" in complaint(capsys, epoch)


def test_export_needs_a_model_with_official_names(trained, tmp_path, capsys):
    custom = ["export", str(trained / "run"), str(tmp_path / "out.pth")]
    assert "has tiny:build, which has no official names: export built-in models" in complaint(capsys, custom)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_names_directories_that_are_not_models(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    data = str(trained / "data" / "evaluation.json")
    assert "no model at" in complaint(capsys, ["evaluate", "nowhere", "--data", data])
    assert "--trust" in complaint(capsys, ["evaluate", str(trained / "run"), "--data", data])


@pytest.mark.parametrize("command", [*main.COMMANDS, "", *(f"prepare {name}" for name in DATA_SETS)])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom psla_jax.cli import main\n"
        "try:\n    main.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'flax', 'grain', 'torch', 'orbax', 'sklearn'} & set(sys.modules), 'heavy'\n"
    )
    arguments = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert "psla" in done.stdout
    assert not command.startswith("prepare ") or f"Example: psla {command} " in " ".join(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tag", "--help"]])
def test_a_closed_output_is_no_error_and_a_full_one_is_one_sentence(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "psla_jax.cli.main", *arguments]
    read_end, write_end = os.pipe()
    os.close(read_end)
    closed = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (closed.returncode, closed.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        failed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (1, "psla: No space left on device: the disk.\n")


def test_further_metrics_of_models_and_of_their_ensemble(trained, capsys):
    """``psla evaluate --metrics``: named and imported ones, after the reference's in every line."""
    models = [str(trained / "run" / "models" / name) for name in ("epoch_001", "epoch_002")]
    data, scores = str(trained / "data" / "evaluation.json"), trained / "scores.npz"
    asked = ["lwlrap", "measures:worst(factor=2)"]
    command = ["evaluate", *models, "--data", data, "--trust", "--bootstrap", "0"]
    assert main.main([*command, "--save", str(scores), "--metrics", *asked]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Model", "Ensemble 2"))]
    values = Evaluators.find(asked, sounds.VOCABULARY)(Scores.load(scores))
    assert len(lines) == 3
    assert lines[2].endswith(
        f"accuracy: {Scores.load(scores).metrics().accuracy:.6f}, lwlrap: {values['lwlrap']:.6f}, "
        f"worst_factor_2: {values['worst_factor_2']:.6f}"
    )
    result = psla_jax.evaluate(models[:1], data, trust=True, bootstrap=0, metrics=[measures.worst])
    assert lines[0].endswith(f"worst_factor_2: {2 * result.further_models[0]['worst']:.6f}")
    assert result.further_models[0] == result.further_ensemble
    capsys.readouterr()
    assert "'f1' is unknown: choose one of lwlrap" in complaint(capsys, [*command, "--metrics", "f1"])
    assert "failing cannot be computed" in complaint(capsys, [*command, "--metrics", "measures:failing"])
