"""The commands ``psla check`` and ``psla pack``: exit codes, outputs and error messages."""

from __future__ import annotations

import json

import pytest
import sounds
import tiny
from recordings import noise, write

from psla_jax.cli import main
from psla_jax.data.datafile import Datafile
from psla_jax.data.validate import run as validation
from psla_jax.evaluation.predict import Scores

CONFIG = """
from psla_jax.config import *
config = RunConfig(
    data=DataConfig(train={data!r} + "/train.json", validation={data!r} + "/validation.json",
                    evaluation={data!r} + "/evaluation.json", labels={data!r} + "/labels.csv",
                    batch_size=8, workers=0),
    frontend=FrontendConfig(target_length=40, mean=-8.0, std=3.0),
    model=ModelConfig(name="tiny:build"),
    sampling=SamplingConfig(freq_mask=24, time_mask=10),
    optimizer=OptimizerConfig(epochs=1, warmup_steps=0),
    aggregation=AggregationConfig(first=1, last=1),
    bootstrap=0,
)
"""


@pytest.fixture
def home(tmp_path):
    sounds.make(tmp_path / "data")
    (tmp_path / "config.py").write_text(CONFIG.format(data=str(tmp_path / "data")))
    return tmp_path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def error_message(capsys, *arguments: object, code: int = 2) -> str:
    ended, _, error = run(capsys, *arguments)
    assert ended == code
    assert error.startswith("psla: ")
    assert error.count("\n") == 1
    return error


def test_a_sound_set_ends_with_0_and_a_broken_one_with_1(home, capsys):
    arguments = ["check", home / "data/train.json", "--labels", home / "data/labels.csv"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "the data set can be used for training" in out
    (home / "data" / "train05.wav").write_bytes(b"")
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert f"{home / 'data' / 'train05.wav'} is an empty file" in out
    assert "repair the errors before training" in out
    assert err == ""


def test_json_goes_to_the_standard_output_alone_or_to_a_file(home, capsys):
    arguments = ["check", home / "data/train.json", "--labels", home / "data/labels.csv", "--json"]
    code, out, _ = run(capsys, *arguments, "-")
    assert json.loads(out)["ok"] is True
    assert code == 0
    assert "the data set can be used for training" in run(capsys, *arguments, home / "found.json")[1]
    assert json.loads((home / "found.json").read_text()) == json.loads(out)
    (home / "found.json").write_text("mine")
    assert "already exists" in error_message(capsys, *arguments, home / "found.json")
    assert (home / "found.json").read_text() == "mine"
    assert run(capsys, *arguments, home / "found.json", "--force")[0] == 0
    assert json.loads((home / "found.json").read_text())["clips"] == 26


@pytest.mark.parametrize("name", ["train.json", "labels.csv", "link.json"])
def test_json_does_not_replace_an_input(home, capsys, name):
    data, labels = home / "data" / "train.json", home / "data" / "labels.csv"
    (home / "data" / "link.json").unlink(missing_ok=True)
    (home / "data" / "link.json").symlink_to("train.json")
    before = data.read_text(), labels.read_text()
    path = home / "data" / name
    message = f"--json {path} would replace an input of the command"
    assert message in error_message(capsys, "check", data, "--labels", labels, "--json", path, "--force")
    assert (data.read_text(), labels.read_text()) == before
    (home / "data" / "link.json").unlink()


def parse_request(monkeypatch, *arguments: object) -> validation.Request:
    """Returns the request that a command line is parsed to."""
    requests = []

    def record(request, logger, log):
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(validation, "validate_dataset", record)
    assert main.main(["check", *map(str, arguments)]) == 130
    return requests[0]


def test_a_config_gives_the_defaults(home, monkeypatch):
    request = parse_request(monkeypatch, "--config", home / "config.py")
    data = home / "data"
    assert (request.data, request.labels) == (str(data / "train.json"), str(data / "labels.csv"))
    assert request.against == (str(data / "validation.json"), str(data / "evaluation.json"))
    assert (request.frontend.mean, request.frontend.std, request.frontend.target_length) == (-8.0, 3.0, 40)
    request = parse_request(
        monkeypatch, data / "evaluation.json", "--config", home / "config.py", "--mean", "1", "--against", "x"
    )
    assert request.data == str(data / "evaluation.json")
    assert request.against == ("x",)
    assert (request.frontend.mean, request.frontend.std) == (1.0, 3.0)
    request = parse_request(monkeypatch, data / "evaluation.json", "--config", home / "config.py", "--channel", "first")
    assert request.against == (str(data / "train.json"), str(data / "validation.json"))
    assert request.channel == "first"


def test_invalid_arguments_are_reported_in_one_sentence(home, capsys):
    data = home / "data/train.json"
    assert "needs a datafile" in error_message(capsys, "check")
    assert "nowhere.json" in error_message(capsys, "check", home / "nowhere.json")
    assert "nowhere.csv" in error_message(capsys, "check", data, "--labels", home / "nowhere.csv")
    assert "nowhere.json" in error_message(capsys, "check", data, "--ontology", home / "nowhere.json")
    assert "nowhere.json" in error_message(capsys, "check", data, "--against", home / "nowhere.json")
    assert "frontend.std is 0.0" in error_message(capsys, "check", data, "--std", "0")
    assert "--limit is -1" in error_message(capsys, "check", data, "--limit", "-1")
    assert "nowhere.json" in error_message(capsys, "pack", home / "nowhere.json", home / "packed")
    assert "contains the datafile to pack" in error_message(capsys, "pack", data, home / "data")


def test_an_interrupt_ends_the_command_cleanly(home, capsys, monkeypatch):
    from psla_jax.data.validate import measure

    def interrupted(data, clip, channel):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "_measure", interrupted)
    assert "interrupted" in error_message(capsys, "check", home / "data/train.json", code=130)


@pytest.fixture
def packed(home, capsys):
    for name in ("train", "validation", "evaluation"):
        code, out, _ = run(capsys, "pack", home / "data" / f"{name}.json", home / "packed", "--clips-per-shard", "10")
        assert code == 0
    assert f"{home / 'packed' / 'evaluation.json'}: 11 clips\n2 shards of pcm16" in out
    return home / "packed"


def packed_config(home, packed) -> str:
    """Writes the config with the packed data sets and returns its path."""
    text = (home / "config.py").read_text()
    for name in ("train", "validation", "evaluation"):
        text = text.replace(f'{str(home / "data")!r} + "/{name}.json"', repr(str(packed / f"{name}.json")))
    (home / "packed.py").write_text(text)
    return str(home / "packed.py")


def test_a_run_on_packed_sets_is_the_run_on_their_files(home, packed, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(home / "cache"))
    assert run(capsys, "train", home / "config.py", "--run-dir", home / "a")[0] == 0
    assert run(capsys, "train", packed_config(home, packed), "--run-dir", home / "b")[0] == 0
    one, other = (Scores.load(home / name / "scores" / "evaluation_average.npz") for name in "ab")
    assert one.clips.tolist() == other.clips.tolist()
    assert (one.scores == other.scores).all()
    assert (home / "a" / "result.csv").read_bytes() == (home / "b" / "result.csv").read_bytes()
    lines = []
    for data in (home / "data" / "evaluation.json", packed / "evaluation.json"):
        arguments = [home / "a", "--data", data, "--trust", "--batch-size", "4"]
        code, out, _ = run(capsys, "evaluate", *arguments)
        assert code == 0
        lines.append([line for line in out.splitlines() if "mAP" in line])
    assert lines[0] == lines[1]


def test_scores_kept_of_a_packed_set_are_made_again_when_a_shard_has_changed(home, packed, capsys, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(home / "cache"))
    arguments = ["evaluate", tiny.save(home / "model"), "--data", packed / "evaluation.json", "--batch-size", "4"]
    assert "scores kept" not in run(capsys, *arguments)[1]
    assert "scores kept from an earlier call" in run(capsys, *arguments)[1]
    write(home / "data" / "evaluation03.wav", noise(7))
    pack = ["pack", home / "data" / "evaluation.json", packed, "--clips-per-shard", "10", "--force"]
    assert run(capsys, *pack)[0] == 0
    assert "scores kept" not in run(capsys, *arguments)[1]


def test_training_on_a_damaged_shard_ends_in_one_sentence(home, packed, capsys):
    shard = packed / "train-00001-of-00003.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:70_000])
    error = error_message(capsys, "train", packed_config(home, packed), "--run-dir", home / "b")
    assert "has 10 clips that cannot be used" in error
    assert "is in a damaged shard" in error
    assert not (home / "b").exists()


def test_an_unreadable_clip_and_a_folder_that_cannot_be_made(home, capsys):
    (home / "data" / "train05.wav").write_text("not audio")
    error = error_message(capsys, "pack", home / "data" / "train.json", home / "packed")
    assert "train05.wav cannot be read as audio" in error
    code, out, _ = run(capsys, "pack", home / "data" / "train.json", home / "packed", "--unreadable", "skip")
    assert code == 0
    assert "left out: " in out
    data = Datafile.read(home / "packed" / "train.json", sounds.VOCABULARY)
    assert len(data) == 25
    (home / "file").write_text("no folder")
    assert str(home / "file") in error_message(
        capsys, "pack", home / "data" / "train.json", home / "file" / "x", code=1
    )


def test_the_embedded_set_can_be_checked(capsys, monkeypatch, home):
    from psla_jax.data import datasets

    monkeypatch.setattr(datasets.dataset, "locate", lambda name, on_start=None: str(home / "data" / {
        "labels": "labels.csv"
    }.get(name, f"{name}.json")))  # fmt: skip
    code, out, _ = run(capsys, "check", "demo:train", "--labels", "demo:labels", "--against", "demo:evaluation")
    assert code == 0
    assert "26, of which 26 were read" in out
