"""The examples run as scripts, each in an empty folder, and print results that are better than chance."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import psla_jax

FOLDER = Path(__file__).resolve().parents[2] / "examples"
NUMBER = r"(\d\.\d{3,4})"
RESULTS = {
    "distillation": rf"^student, 3 epochs, with the teacher: evaluation mAP {NUMBER}",
    "five_fold": rf"weight average \(epochs 2-4\), statistics re-estimated: mAP {NUMBER}",
    "high_rate": rf"^32000 Hz: evaluation mAP {NUMBER}",
    "linear_probe": rf"^linear probe on 320 features: evaluation mAP {NUMBER}",
    "own_backbone": rf"^another head on the frozen backbone: evaluation mAP {NUMBER}",
    "own_loop": rf"^evaluation mAP {NUMBER}",
    "own_loss_and_augmentation": rf"^evaluation mAP {NUMBER}",
}
"""What an example prints, with its mAP."""
ARGUMENTS = {
    "distillation": ("--no-compare", "--teacher-epochs", "5", "--epochs", "3"),
    "five_fold": ("--epochs", "4"),
    "high_rate": ("--rates", "32000"),
}
LEAST = {"high_rate": 0.8}
"""The least mAP, where it is not one and a half times that of random scores."""


@pytest.fixture(scope="session")
def chance() -> float:
    """The mAP that random scores have on the evaluation set: the mean share of positive clips."""
    data = psla_jax.read_datafile("demo:evaluation", "demo")
    return float(data.class_counts().mean() / len(data))


@pytest.mark.parametrize("name", RESULTS)
def test_an_example_prints_a_result_that_is_better_than_chance(name, chance, tmp_path):
    command = [sys.executable, FOLDER / f"{name}.py", *ARGUMENTS.get(name, ())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = re.search(RESULTS[name], done.stdout, re.MULTILINE)
    assert printed, done.stdout
    assert float(printed[1]) > LEAST.get(name, 1.5 * chance)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_every_example_is_tested_and_a_page_of_documentation():
    scripts = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")}
    assert sorted(scripts) == sorted(RESULTS)
    for name, tree in scripts.items():
        docstring = ast.get_docstring(tree) or ""
        assert re.match(rf"[A-Z].*\.\n\n    python examples/{name}\.py\n", docstring), name
        assert 500 < len(docstring) < 2500, name
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 120, name
