"""Programs that are kept from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import psla_jax
from psla_jax.tagging import kept

TAG = """
import sys, numpy as np, psla_jax
tagger = psla_jax.load(sys.argv[1], batch_size=4)
tagger.on_compile = lambda text: print(text or "done")
print(*tagger.tag(np.load(sys.argv[2]), 16_000).scores.tolist())
"""


def tagged_elsewhere(saved, tmp_path) -> list[str]:
    """What another process prints that keeps its programs in a folder of this test."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", TAG, str(saved("attention")), str(tmp_path / "sound.npy")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_second_process_compiles_nothing_and_a_damaged_program_is_made_again(saved, sound, tmp_path):
    np.save(tmp_path / "sound.npy", sound[:9_000])
    expected = psla_jax.load(saved("attention")).tag(sound[:9_000], 16_000).scores
    for turn, compiles in enumerate((True, False, True)):
        if turn == 2:
            (program,) = (tmp_path / "cache" / "programs").iterdir()
            program.write_bytes(program.read_bytes()[:-1000])
        *said, scores = tagged_elsewhere(saved, tmp_path)
        assert bool(said) == compiles
        np.testing.assert_allclose([float(s) for s in scores.split()], expected, atol=2e-6)


def test_programs_are_told_apart():
    assert kept.key({"heads": 4}, 1) == kept.key({"heads": 4}, 1)
    assert len({kept.key({"heads": 4}, 1), kept.key({"heads": 4}, 4), kept.key({"heads": 1}, 1)}) == 3
