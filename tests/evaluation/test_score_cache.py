"""Cached scores are those of the same model, data, code, libraries and device settings, or they are computed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import sounds
import tiny

from psla_jax.data.datafile import Datafile
from psla_jax.evaluation import score_cache
from psla_jax.evaluation.scores import Scores
from psla_jax.models.model_dir import read_card
from psla_jax.runtime import cache


class Calls:
    """Looks scores up and counts how often they are computed."""

    def __init__(self, model: Path, data: Datafile) -> None:
        self.model, self.data, self.computed = model, data, 0

    def compute(self) -> Scores:
        self.computed += 1
        return Scores(np.array(["a.wav"]), np.full((1, 4), self.computed, np.float32), np.zeros((1, 4), np.float32))

    def __call__(self, log: Callable[[str], None] = pytest.fail) -> int:
        """Returns the number of the computation that the scores are from."""
        vocabulary, settings = sounds.VOCABULARY, ("mean",)
        scores = score_cache.cached(self.model, vocabulary, self.data, settings, self.compute, lambda: None, log)
        return int(scores.scores[0, 0])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Datafile:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    folder = sounds.make(tmp_path / "data", train=1, validation=2, evaluation=1)
    return Datafile.read(folder / "validation.json", sounds.VOCABULARY)


def test_everything_that_decides_a_score_is_in_the_key(
    data: Datafile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Calls(tiny.save(tmp_path / "model"), data)
    assert [scores(), scores()] == [1, 1]
    with jax.default_matmul_precision("bfloat16"):
        assert scores() == 2
    monkeypatch.setattr(jax, "__version__", "0.0")
    assert scores() == 3
    monkeypatch.setattr(cache, "source_digest", lambda: "an in-place change of the package")
    monkeypatch.setattr("psla_jax.runtime.exported.source_digest", cache.source_digest)
    assert scores() == 4
    monkeypatch.setattr("psla_jax.evaluation.score_cache.metadata.version", lambda name: f"another {name}")
    assert scores() == 5
    card = read_card(scores.model)
    (scores.model / "model.json").write_text(dataclasses.replace(card, exclusive=True).to_json())
    assert [scores(), scores()] == [6, 6]


def test_scores_of_custom_models_are_always_computed(data: Datafile, tmp_path: Path) -> None:
    scores = Calls(tiny.save(tmp_path / "model", "tiny:build"), data)
    assert [scores(), scores()] == [1, 2]


def test_a_cache_that_cannot_be_written_costs_no_result(data: Datafile, tmp_path: Path) -> None:
    scores, notes = Calls(tiny.save(tmp_path / "model"), data), list[str]()
    (tmp_path / "cache").write_text("a file in place of the directory")
    assert [scores(notes.append), scores(notes.append)] == [1, 2]
    assert len(notes) == 2
    assert notes[0].startswith(f"the scores cannot be cached (Not a directory: {tmp_path}/cache/scores")
