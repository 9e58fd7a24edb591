"""Trackers as users write them, and stand-ins for the packages of W&B and MLflow that record their calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WANDB = """
import json, pathlib
FILE = pathlib.Path({file!r})
def note(**call):
    with open(FILE, "a") as file:
        file.write(json.dumps(call) + "\\n")
class Summary:
    def update(self, values):
        note(summary=values)
class Histogram:
    def __init__(self, values):
        self.count = len(values)
class Run:
    summary = Summary()
    def define_metric(self, name, step_metric):
        note(axis=[name, step_metric])
    def log(self, values):
        if {fail} == values.get("step", "no step"):
            raise ConnectionError("no route\\nto host")
        note(log={{key: getattr(value, "count", value) for key, value in values.items()}})
    def finish(self, exit_code):
        note(finish=exit_code)
def init(**options):
    if {fail} == "start":
        raise ConnectionError("no route")
    note(init={{k: dict(v) if k == "config" else v for k, v in options.items()}})
    return Run()
"""
MLFLOW = """
import json, pathlib, types
FILE = pathlib.Path({file!r})
def note(**call):
    with open(FILE, "a") as file:
        file.write(json.dumps(call) + "\\n")
def set_experiment(name):
    note(experiment=name)
def start_run(run_id, nested, **options):
    note(start=[run_id, options])
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))
def log_params(values):
    assert len(values) <= 100
    note(params=values)
def log_metrics(values, step=None):
    note(log=values, step=step)
def end_run(status):
    note(end=status)
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, fail: Any = None) -> Path:
    """Puts a stand-in for a package first on the path; returns the file of its calls. It can `fail` at a step."""
    folder.mkdir(exist_ok=True)
    calls = folder / f"{name}.jsonl"
    text = {"wandb": WANDB, "mlflow": MLFLOW}[name]
    (folder / f"{name}.py").write_text(text.format(file=str(calls), fail=repr(fail)))
    monkeypatch.syspath_prepend(str(folder))
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    return calls


def read(calls: Path, kind: str) -> list[Any]:
    """Returns the arguments of the calls of one kind."""
    return [call[kind] for call in map(json.loads, calls.read_text().splitlines()) if kind in call]


class Table:
    """Lines of text; the name of the file is an option."""

    def __init__(self, directory: Path, step: int, epoch: int, name: str = "table.txt", fail: str = "") -> None:
        self.path, self.fail = directory / name, fail
        self.write(f"open {step} {epoch}")

    def write(self, text: str) -> None:
        if self.fail and text.startswith(self.fail):
            raise ConnectionError("unplugged")
        with open(self.path, "a") as file:
            file.write(f"{text}\n")

    def steps(self, values: Mapping[str, float], step: int) -> None:
        self.write(f"step {step} {' '.join(values)}")

    def epoch(self, values: Mapping[str, float], histograms: Mapping[str, np.ndarray], epoch: int) -> None:
        shapes = [f"{name}{array.shape}" for name, array in histograms.items()]
        self.write(f"epoch {epoch} {' '.join([*values, *shapes])}")

    def results(self, values: Mapping[str, float]) -> None:
        self.write(f"results {' '.join(values)}")

    def close(self, complete: bool) -> None:
        self.write(f"close {complete}")


def nothing() -> None:
    """Returns no tracker."""


def demanding(project: str) -> Table:
    """Requires what is not there."""
    raise AssertionError(project)
