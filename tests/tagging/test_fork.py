"""A model that was loaded before a fork, in the forked process and in a spawned one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing, sys, warnings
import numpy as np
import psla_jax
from psla_jax.models.model_dir import load_model

def report(tag):
    try:
        print("ok", f"{tag(np.ones(16_000), 16_000).scores[0]:.6f}", flush=True)
    except RuntimeError as error:
        print(type(error).__name__, error, flush=True)

def load_and_report():
    report(lambda *audio: psla_jax.load(sys.argv[1]).tag(*audio))

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # JAX warns of any fork.
    start = multiprocessing.get_context("fork").Process
    unloaded = start(target=load_and_report)  # JAX has been imported, but not used.
    unloaded.start()
    unloaded.join()
    tagger = psla_jax.load(sys.argv[1])
    processes = [start(target=report, args=(tagger.tag,)), start(target=load_and_report)]
    processes += [multiprocessing.get_context("spawn").Process(target=load_and_report)]
    for process in processes:
        process.start()
        process.join()
    report(tagger.tag)
"""


def test_a_forked_process_is_told_to_load_the_model_itself(saved, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(saved("attention"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    first, used, reloaded, spawned, own = done.stdout.splitlines()
    assert first.startswith("ok ")
    assert first == spawned == own
    for line in (used, reloaded):
        assert line.startswith("ForkError process ")
        assert "load the model in each worker and not before, or start the workers with" in line
        assert line.count(". ") == 0
