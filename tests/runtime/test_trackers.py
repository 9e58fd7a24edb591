"""Trackers of curves: what they receive, that a resumed run continues without a point twice, and failures."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import trackers

from psla_jax.runtime.trackers import Trackers, require_available

CONFIG = {"seed": 3, "metrics": ["lwlrap"], **{f"field{i}": i for i in range(150)}}
AP = {"validation/AP_per_class": np.array([0.5, np.nan])}


def run(directory: Path, *texts: str, step: int = 0, epoch: int = 0, said: list[str] | None = None) -> Trackers:
    """Starts trackers and sends them the next three steps and an epoch."""
    opened = Trackers(texts, directory, CONFIG, (said if said is not None else []).append)
    opened.open(step, epoch)
    for number in range(step + 1, step + 4):
        opened.steps({"loss": 1 / number, "gradient_norm": math.inf}, number)
    opened.epoch({"validation/mAP": 0.25, "train/skipped_steps": 0.0}, AP, epoch + 1)
    return opened


def test_wandb_receives_both_axes_once_and_continues_its_run(tmp_path: Path, monkeypatch) -> None:
    calls = trackers.install(monkeypatch, tmp_path / "packages", "wandb")
    directory = tmp_path / "run"
    directory.mkdir()
    with pytest.raises(KeyboardInterrupt), run(directory, "wandb(project='mine', group='g')"):
        raise KeyboardInterrupt
    with run(directory, "wandb", step=2, epoch=0) as resumed:  # Its last checkpoint was after step 2.
        resumed.results({"evaluation/checkpoint_ensemble_mAP": 0.5})
    first, second = trackers.read(calls, "init")
    assert (first["project"], first["group"], first["name"], first["config"]) == ("mine", "g", "run", CONFIG)
    assert (second["project"], second["resume"], second["allow_val_change"]) == ("psla", "allow", True)
    assert first["id"] == second["id"] != ""
    assert first["dir"] == str(directory)
    epoch = {"validation/mAP": 0.25, "train/skipped_steps": 0.0, "validation/AP_per_class": 1, "epoch": 1}
    steps = [{"step/loss": 1 / number, "step": number} for number in range(1, 6)]
    assert trackers.read(calls, "log") == [*steps[:3], epoch, *steps[3:]]
    axes = dict(trackers.read(calls, "axis"))
    assert axes == {"step/*": "step", "train/*": "epoch", "validation/*": "epoch", "evaluation/*": "epoch"}
    assert trackers.read(calls, "summary") == [{"evaluation/checkpoint_ensemble_mAP": 0.5}]
    assert trackers.read(calls, "finish") == [1, 0]
    with run(directory, "wandb"):  # Without a checkpoint, it is another run.
        pass
    assert trackers.read(calls, "init")[2]["id"] != first["id"]
    assert [point["step"] for point in trackers.read(calls, "log")[6:] if "step" in point] == [1, 2, 3]


def test_mlflow_receives_parameters_and_points_once(tmp_path: Path, monkeypatch) -> None:
    calls = trackers.install(monkeypatch, tmp_path, "mlflow")
    directory = tmp_path / "run"
    directory.mkdir()
    with pytest.raises(KeyboardInterrupt), run(directory, "mlflow(experiment='e', description='d')"):
        raise KeyboardInterrupt
    with run(directory, "mlflow", step=3, epoch=1) as resumed:
        resumed.results({"evaluation/best_single_mAP": 0.5, "evaluation/best_single_accuracy": math.nan})
    assert trackers.read(calls, "experiment") == ["e"]
    assert trackers.read(calls, "start") == [
        [None, {"run_name": "run", "description": "d"}],
        ["new", {"run_name": "run"}],
    ]
    assert {k: v for part in trackers.read(calls, "params") for k, v in part.items()} == CONFIG
    assert len(trackers.read(calls, "params")) == 2
    epoch = {"validation/mAP": 0.25, "train/skipped_steps": 0.0}
    steps = [{"step/loss": 1 / number} for number in range(1, 7)]
    result = {"evaluation/best_single_mAP": 0.5}
    assert trackers.read(calls, "log") == [*steps[:3], epoch, *steps[3:], epoch, result]
    assert trackers.read(calls, "step") == [1, 2, 3, 1, 4, 5, 6, 2, None]
    assert trackers.read(calls, "end") == ["KILLED", "FINISHED"]


def test_a_tracker_of_ones_own_receives_what_it_names_and_several_can_be_used(tmp_path: Path) -> None:
    with run(tmp_path, "trackers:Table(name='a.txt')", "trackers:Table(name='b.txt')", step=4, epoch=1) as opened:
        opened.results({"evaluation/best_single_mAP": 0.5})
    lines = [
        *("open 4 1", "step 5 loss", "step 6 loss", "step 7 loss"),
        "epoch 2 validation/mAP train/skipped_steps validation/AP_per_class(2,)",
        *("results evaluation/best_single_mAP", "close True"),
    ]
    assert [(tmp_path / name).read_text().splitlines() for name in ("a.txt", "b.txt")] == [lines, lines]


@pytest.mark.parametrize("fail", ["step 2", "epoch", "close"])
def test_one_that_fails_is_reported_once_and_the_others_go_on(tmp_path: Path, fail: str) -> None:
    said: list[str] = []
    texts = (f"trackers:Table(name='a.txt', fail='{fail}')", "trackers:Table(name='b.txt')")
    with run(tmp_path, *texts, said=said):
        pass
    assert said == [f"log: {texts[0]} failed and is disabled (ConnectionError: unplugged)"]
    assert len((tmp_path / "b.txt").read_text().splitlines()) == 6
    assert fail not in (tmp_path / "a.txt").read_text()


def test_wandb_that_fails_in_the_middle_is_disabled(tmp_path: Path, monkeypatch) -> None:
    calls = trackers.install(monkeypatch, tmp_path, "wandb", fail=2)
    said: list[str] = []
    with run(tmp_path, "wandb", said=said):
        pass
    assert said == ["log: wandb failed and is disabled (ConnectionError: no route)"]
    assert trackers.read(calls, "log") == [{"step/loss": 1.0, "step": 1}]


def test_one_that_cannot_be_started_ends_a_new_run_but_not_one_that_is_resumed(tmp_path: Path, monkeypatch) -> None:
    trackers.install(monkeypatch, tmp_path, "wandb", fail="start")
    with pytest.raises(ValueError, match=r"^log: wandb cannot be started \(ConnectionError: no route\): correct"):
        run(tmp_path, "wandb")
    said: list[str] = []
    with run(tmp_path, "wandb", step=1, said=said):
        pass
    assert said == ["log: wandb cannot be started (ConnectionError: no route): correct or omit it."]


WRONG = {
    "comet": "log is 'comet': 'comet' is unknown: choose one of tensorboard, wandb, mlflow, or name module:callable.",
    "tensorboard(port=1)": "tensorboard has no option 'port'",
    "trackers:nothing": "log: trackers:nothing returns NoneType, which has no method steps: return a tracker with",
    "trackers:demanding": "cannot be called (missing a required argument: 'project'): it may take log, directory",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_tracker_is_an_error_of_one_sentence(tmp_path: Path, text: str) -> None:
    def start() -> None:
        require_available([text])
        run(tmp_path, text)

    with pytest.raises(ValueError, match="log") as raised:
        start()
    assert type(raised.value).__module__.startswith("psla_jax.")
    assert WRONG[text] in str(raised.value)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch, name: str) -> None:
    message = rf"log is '{name}\(x=1\)', and the package {name} is not installed: pip install 'psla_jax\[{name}\]'\."
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            require_available(["tensorboard", f"{name}(x=1)"])
        (tmp_path / name).mkdir(exist_ok=True)  # W&B writes a folder wandb, which is no package.
