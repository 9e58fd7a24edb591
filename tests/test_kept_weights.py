"""Weights kept for the next start: the model's own, bit for bit, or not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from sounds import VOCABULARY

from psla_jax import cache, checkpoints
from psla_jax.checkpoints import ModelCard, load_model, save_model
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import tagger
from psla_jax.training import split_model

CARD = ModelCard(ModelConfig(name="efficientnet-tiny"), FrontendConfig(target_length=64), VOCABULARY, {})


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """A directory in which weights are kept during the test."""
    cache.keep(tmp_path / "cache")
    yield tmp_path / "cache" / "weights"
    cache.keep(None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", seed=1)


def saved(directory: Path, seed: int) -> Path:
    network = tagger.from_config(CARD.model, len(VOCABULARY), np.float32, nnx.Rngs(seed))
    save_model(directory, CARD, *split_model(network))
    return directory


def weights(directory: Path) -> tuple[dict, dict]:
    return split_model(load_model(directory).network)


def refuse(*_: object) -> None:
    raise AssertionError("the directory was read")


def test_the_second_start_has_the_same_weights_without_reading_the_directory(
    kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights(model)
    monkeypatch.setattr(checkpoints, "load_weights", refuse)
    second = weights(model)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(second))


def test_a_model_that_took_the_place_of_another_is_read(kept: Path, model: Path) -> None:
    first = weights(model)
    saved(model, seed=2)
    second = weights(model)
    assert not jax.tree.all(jax.tree.map(np.array_equal, first, second))
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_weights_are_read_from_the_directory(kept: Path, model: Path, damage: str) -> None:
    first = weights(model)
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "other":
        np.savez(file, **{str(number): np.zeros(3, np.float32) for number in range(1000)})
    else:
        content[len(content) // 2] ^= 16
        file.write_bytes({"cut": content[:-1000], "flipped": content, "empty": b""}[damage])
    jax.tree.map(np.testing.assert_array_equal, first, weights(model))
    jax.tree.map(np.testing.assert_array_equal, first, weights(model))  # They were kept anew.


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache.keep(tmp_path / "file")
    try:
        assert weights(model)[0]
    finally:
        cache.keep(None)


def test_a_library_use_keeps_nothing(model: Path, tmp_path: Path) -> None:
    weights(model)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model"]
