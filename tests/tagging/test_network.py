"""Compiled programs: shared by models of the same architecture in a process, and by processes through JAX's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

import psla_jax

PROGRAM = """
import os, sys
import jax
import numpy as np
import psla_jax

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
tagger = psla_jax.load(sys.argv[1])
settings = dict(jax.config.values)
score = tagger.tag(np.ones(16_000, np.float32), 16_000).scores[0]
assert jax.config.values == settings, "the settings of the application have changed"
cached = sorted(os.listdir(os.path.join(os.environ["PSLA_CACHE"], "xla")))
jax.jit(lambda x: x * 12_345)(1.0)
assert sorted(os.listdir(os.path.join(os.environ["PSLA_CACHE"], "xla"))) == cached, "the application's are cached too"
print(sum(hits), sum(name.startswith("jit__analyse-") for name in cached), f"{score:.6f}")
"""


@pytest.fixture
def compilations():
    """The list of durations of all compilations since the start of the test."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_models_of_the_same_architecture_compile_once(saved, sound, compilations):
    models = [saved("attention"), saved("attention"), saved("other")]
    jax.clear_caches()
    first = psla_jax.load(models[0]).tag(sound, 16_000)
    assert compilations
    compilations.clear()
    again, other = (psla_jax.load(model).tag(sound, 16_000) for model in models[1:])
    assert compilations == []
    np.testing.assert_array_equal(again.scores, first.scores)
    assert np.abs(other.scores - first.scores).max() > 0.01, "the weights are those of each model"
    psla_jax.load(saved("attention"), policy="mask").tag(sound[:9_000], 16_000)
    assert compilations, "another policy is another program"


def test_several_threads_compile_once(saved, sound, compilations):
    jax.clear_caches()
    psla_jax.load(saved("attention")).tag(sound, 16_000)
    alone = len(compilations)
    jax.clear_caches()
    compilations.clear()
    taggers = [psla_jax.load(saved("attention")) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda tagger: tagger.tag(sound, 16_000).scores, taggers))
    assert len(compilations) <= alone
    np.testing.assert_array_equal(scores, [scores[0]] * 4)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_next_process_finds_the_program_and_the_application_keeps_its_settings(saved, tmp_path: Path, disabled):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"PSLA_CACHE": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    if disabled:
        (tmp_path / "xla").mkdir()
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", PROGRAM, str(saved("attention"))]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120) for _ in range(2)]
    (hits, programs, score), (more_hits, same_programs, same_score) = (run.stdout.split() for run in runs)
    assert (hits, programs, same_programs) == ("0", *["0" if disabled else "1"] * 2)
    assert (int(more_hits) > 0) is not disabled
    assert score == same_score
