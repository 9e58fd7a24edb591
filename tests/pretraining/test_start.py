"""Fine-tuning: what a training takes over from another model, what it leaves alone, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny import TinyWithBackbone

from psla_jax.checkpoints import ModelCard, save_model
from psla_jax.config import FrontendConfig, ModelConfig, OptimizerConfig, PretrainingConfig, RunConfig, SamplingConfig
from psla_jax.models.layers import ModelError
from psla_jax.models.tagger import AudioTagger, from_config, train_view
from psla_jax.ontology import Vocabulary
from psla_jax.pretraining.names import PretrainingError, to_state_dict
from psla_jax.pretraining.start import start_from
from psla_jax.training import Placement, Trainer, make_trainer, split_model

CONFIG = ModelConfig(name="efficientnet-tiny", heads=2)
OLD = Vocabulary(("/a", "/b", "/c", "/d"), ("A", "B", "C", "D"))
NEW = Vocabulary(("/d", "/x", "/b"), ("D", "X", "B"))


def tagger(vocabulary: Vocabulary, seed: int, config: ModelConfig = CONFIG) -> AudioTagger:
    return from_config(config, len(vocabulary), jnp.float32, nnx.Rngs(seed))


@pytest.fixture(scope="module")
def old() -> AudioTagger:
    return tagger(OLD, 1)


@pytest.fixture(scope="module")
def source(old: AudioTagger, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start") / "old"
    save_model(path, ModelCard(CONFIG, FrontendConfig(target_length=64, mean=-5.0), OLD, {}), *split_model(old))
    return path


def start(model: nnx.Module, source: object, config: ModelConfig = CONFIG, **settings) -> str:
    return start_from(model, config, PretrainingConfig(source=str(source), **settings), NEW, FrontendConfig())


def test_the_backbone_is_taken_whole_and_the_head_class_by_class(old: AudioTagger, source: Path) -> None:
    model, fresh = tagger(NEW, 2), tagger(NEW, 2)
    said = start(model, source)
    assert "2 of 3 classes taken over by mid, 1 new (X)" in said
    assert "frontend.mean -5.0" in said
    theirs = to_state_dict(old)
    for name, value in to_state_dict(model).items():
        if name.startswith("effnet.") or name == "attention.head_weight":
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        else:
            np.testing.assert_array_equal(value[[0, 2]], theirs[name][[3, 1]], err_msg=name)
            np.testing.assert_array_equal(value[1], to_state_dict(fresh)[name][1], err_msg=name)


def test_the_head_is_new_where_asked_and_where_it_does_not_fit(source: Path) -> None:
    model, fresh = tagger(NEW, 2), to_state_dict(tagger(NEW, 2).attention)
    assert "head new for all 3 classes, as asked" in start(model, source, head="new")
    for name, value in to_state_dict(model.attention).items():
        np.testing.assert_array_equal(value, fresh[name])
    other = dataclasses.replace(CONFIG, heads=3)
    assert "the source has attention pooling with 2 heads" in start(tagger(NEW, 2, other), source, other)
    strangers = Vocabulary(("/y",), ("Y",))
    given = PretrainingConfig(source=str(source))
    said = start_from(tagger(strangers, 2), CONFIG, given, strangers, FrontendConfig(mean=-5.0))
    assert "frontend.mean" not in said
    assert "none of the 1 classes is known there" in said


def test_other_backbones_are_refused(source: Path) -> None:
    static = dataclasses.replace(CONFIG, padding="static")
    with pytest.raises(PretrainingError, match=r"use --model\.name efficientnet-tiny --model\.padding symmetric"):
        start(tagger(NEW, 2, static), source, static)
    custom = dataclasses.replace(CONFIG, name="tiny:build")
    with pytest.raises(PretrainingError, match="tiny:build has no such weights"):
        start(from_config(custom, 3, jnp.float32, nnx.Rngs(0)), source, custom)


def test_an_official_checkpoint_gives_its_backbone(old: AudioTagger, tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save({f"module.{name}": torch.from_numpy(value.copy()) for name, value in to_state_dict(old).items()}, path)
    model = tagger(NEW, 2)
    assert "head new (a model made with psla convert" in start(model, path)
    for name, value in to_state_dict(model.backbone).items():
        np.testing.assert_array_equal(value, to_state_dict(old.backbone)[name])


def trainer(model: nnx.Module | None = None, **settings) -> Trainer:
    config = RunConfig(
        model=CONFIG,
        frontend=FrontendConfig(target_length=32),
        sampling=SamplingConfig(mixup=0, freq_mask=0, time_mask=0),
        pretraining=PretrainingConfig(source="given", **settings),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4))
    return make_trainer(config, model or tagger(NEW, 2), 10, Placement.over(jax.devices()[:1]))


def step(which: Trainer, model: nnx.Module | None = None) -> tuple[dict, dict]:
    """The state's parts before and after one step."""
    rng = np.random.default_rng(0)
    batch = {
        "waveform": rng.normal(size=(4, which.frontend.num_samples)).astype(np.float32) * 0.1,
        "num_samples": np.full(4, which.frontend.num_samples, np.int32),
        "labels": rng.integers(0, 2, (4, 3)).astype(np.float32),
        "valid": np.ones(4, np.float32),
    }
    before = which.init(model or tagger(NEW, 2))
    copy = jax.tree.map(np.array, {name: before[name] for name in ("params", "rest")})
    after, _ = which.step(before, which.placement.put(batch), np.int32(0))
    return copy, after


def test_a_frozen_backbone_stays_with_its_statistics_while_the_head_learns() -> None:
    which = trainer(freeze=True)
    before, after = step(which)
    jax.tree.map(np.testing.assert_array_equal, before["params"]["effnet"], dict(after["params"]["effnet"]))
    jax.tree.map(np.testing.assert_array_equal, before["rest"], dict(after["rest"]))
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != np.asarray(b))), before["params"]["attention"], after["params"]["attention"]
    )
    assert all(jax.tree.leaves(changed))
    head = sum(leaf.size for leaf in jax.tree.leaves(before["params"]["attention"]))
    assert {leaf.size for leaf in jax.tree.leaves(after["opt"]) if leaf.ndim} == {head}


def test_the_backbones_own_rate_scales_its_update_alone() -> None:
    model = TinyWithBackbone(3, nnx.Rngs(2))
    (before, slow), (_, fast) = step(trainer(model, backbone_rate=0.1), model), step(trainer(model), model)

    def moved(after: dict, part: str) -> np.ndarray:
        pairs = zip(jax.tree.leaves(before["params"][part]), jax.tree.leaves(after["params"][part]))
        return np.concatenate([(np.asarray(b) - a).ravel() for a, b in pairs])

    np.testing.assert_allclose(moved(slow, "model"), 0.1 * moved(fast, "model"), atol=1e-6)
    np.testing.assert_allclose(moved(slow, "head"), moved(fast, "head"), atol=1e-6)
    assert np.abs(moved(fast, "model")).max() > 5e-3


def test_a_model_without_a_backbone_cannot_have_it_frozen() -> None:
    custom = from_config(ModelConfig(name="tiny:build"), 3, jnp.float32, nnx.Rngs(0))
    with pytest.raises(ModelError, match="TinyTagger has no backbone that could be frozen"):
        train_view(custom, frozen=True)
