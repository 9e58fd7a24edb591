"""Fine-tuning: copied and new weights, frozen backbones, learning rates and errors."""

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
from tolerance import assert_close

from psla_jax.config import FrontendConfig, ModelConfig, OptimizerConfig, PretrainingConfig, RunConfig, SamplingConfig
from psla_jax.models.factory import from_config
from psla_jax.models.layers import ModelError
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.psla import PSLAModel
from psla_jax.models.state import split_model
from psla_jax.models.views import train_view
from psla_jax.pretraining.initialize import start_from
from psla_jax.pretraining.state_dict import PretrainingError, to_state_dict
from psla_jax.runtime.sharding import Placement
from psla_jax.training.trainer import Trainer, make_trainer
from psla_jax.vocabulary.vocabulary import Vocabulary

CONFIG = ModelConfig(name="efficientnet-tiny", heads=2)
OLD = Vocabulary(("/a", "/b", "/c", "/d"), ("A", "B", "C", "D"))
NEW = Vocabulary(("/d", "/x", "/b"), ("D", "X", "B"))


def build(vocabulary: Vocabulary, seed: int, config: ModelConfig = CONFIG) -> PSLAModel:
    return from_config(config, len(vocabulary), jnp.float32, nnx.Rngs(seed))


@pytest.fixture(scope="module")
def old() -> PSLAModel:
    return build(OLD, 1)


@pytest.fixture(scope="module")
def source(old: PSLAModel, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start") / "old"
    save_model(path, ModelCard(CONFIG, FrontendConfig(target_length=64, mean=-5.0), OLD, {}), *split_model(old))
    return path


def start(model: nnx.Module, source: object, config: ModelConfig = CONFIG, **settings) -> str:
    return start_from(model, config, PretrainingConfig(source=str(source), **settings), NEW, FrontendConfig())


def test_the_whole_backbone_is_copied_and_the_head_per_class(old: PSLAModel, source: Path) -> None:
    model, fresh = build(NEW, 2), build(NEW, 2)
    description = start(model, source)
    assert "2 of 3 classes copied by mid, 1 new (X)" in description
    assert "frontend.mean -5.0" in description
    source_weights = to_state_dict(old)
    for name, value in to_state_dict(model).items():
        if name.startswith("effnet.") or name == "attention.head_weight":
            np.testing.assert_array_equal(value, source_weights[name], err_msg=name)
        else:
            np.testing.assert_array_equal(value[[0, 2]], source_weights[name][[3, 1]], err_msg=name)
            np.testing.assert_array_equal(value[1], to_state_dict(fresh)[name][1], err_msg=name)


def test_the_head_is_new_if_configured_or_if_it_does_not_fit(source: Path) -> None:
    model, fresh = build(NEW, 2), to_state_dict(build(NEW, 2).attention)
    assert "new head for all 3 classes, as configured" in start(model, source, head="new")
    for name, value in to_state_dict(model.attention).items():
        np.testing.assert_array_equal(value, fresh[name])
    other = dataclasses.replace(CONFIG, heads=3)
    assert "the source has attention pooling with 2 heads" in start(build(NEW, 2, other), source, other)
    unknown = Vocabulary(("/y",), ("Y",))
    pretraining = PretrainingConfig(source=str(source))
    description = start_from(build(unknown, 2), CONFIG, pretraining, unknown, FrontendConfig(mean=-5.0))
    assert "frontend.mean" not in description
    assert "the source has none of the 1 classes" in description


def test_other_backbones_are_rejected(source: Path) -> None:
    static = dataclasses.replace(CONFIG, padding="static")
    with pytest.raises(PretrainingError, match=r"use --model\.name efficientnet-tiny --model\.padding symmetric"):
        start(build(NEW, 2, static), source, static)
    custom = dataclasses.replace(CONFIG, name="tiny:build")
    with pytest.raises(PretrainingError, match="tiny:build has no such weights"):
        start(from_config(custom, 3, jnp.float32, nnx.Rngs(0)), source, custom)


def test_the_backbone_of_an_official_checkpoint_is_used(old: PSLAModel, tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save({f"module.{name}": torch.from_numpy(value.copy()) for name, value in to_state_dict(old).items()}, path)
    model = build(NEW, 2)
    assert "new head (to keep the weights of common classes" in start(model, path)
    for name, value in to_state_dict(model.backbone).items():
        np.testing.assert_array_equal(value, to_state_dict(old.backbone)[name])


def build_trainer(model: nnx.Module | None = None, **settings) -> Trainer:
    config = RunConfig(
        model=CONFIG,
        frontend=FrontendConfig(target_length=32),
        sampling=SamplingConfig(mixup=0, freq_mask=0, time_mask=0),
        pretraining=PretrainingConfig(source="given", **settings),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4))
    return make_trainer(config, model or build(NEW, 2), 10, Placement.over(jax.devices()[:1]))


def step(trainer: Trainer, model: nnx.Module | None = None) -> tuple[dict, dict]:
    """Returns the trainer state before and after one training step."""
    rng = np.random.default_rng(0)
    batch = {
        "waveform": rng.normal(size=(4, trainer.frontend.num_samples)).astype(np.float32) * 0.1,
        "num_samples": np.full(4, trainer.frontend.num_samples, np.int32),
        "labels": rng.integers(0, 2, (4, 3)).astype(np.float32),
        "valid": np.ones(4, np.float32),
    }
    before = trainer.init(model or build(NEW, 2))
    copy = jax.tree.map(np.array, {name: before[name] for name in ("params", "batch_stats")})
    after, _ = trainer.step(before, trainer.placement.shard_batch(batch), np.int32(0))
    return copy, after


def test_a_frozen_backbone_and_its_batch_statistics_do_not_change() -> None:
    before, after = step(build_trainer(freeze=True))
    jax.tree.map(np.testing.assert_array_equal, before["params"]["effnet"], dict(after["params"]["effnet"]))
    jax.tree.map(np.testing.assert_array_equal, before["batch_stats"], dict(after["batch_stats"]))
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != np.asarray(b))), before["params"]["attention"], after["params"]["attention"]
    )
    assert all(jax.tree.leaves(changed))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(before["params"]["attention"]))
    moments = sorted(leaf.size for leaf in jax.tree.leaves(after["opt"]) if leaf.ndim)
    assert moments == sorted(2 * sizes), "the optimizer has two moments of every parameter of the head, and no others"


def test_the_backbone_rate_scales_only_the_update_of_the_backbone() -> None:
    model = TinyWithBackbone(3, nnx.Rngs(2))
    (before, slow), (_, fast) = step(build_trainer(model, backbone_rate=0.1), model), step(build_trainer(model), model)

    def update(after: dict, part: str) -> np.ndarray:
        pairs = zip(jax.tree.leaves(before["params"][part]), jax.tree.leaves(after["params"][part]))
        return np.concatenate([(np.asarray(b) - a).ravel() for a, b in pairs])

    assert_close(update(slow, "model"), 0.1 * update(fast, "model"), 1e-3)
    assert_close(update(slow, "head"), update(fast, "head"), 1e-4)
    assert np.abs(update(fast, "model")).max() > 5e-3


def test_a_model_without_a_backbone_cannot_be_frozen() -> None:
    custom = from_config(ModelConfig(name="tiny:build"), 3, jnp.float32, nnx.Rngs(0))
    with pytest.raises(ModelError, match="TinyTagger has no backbone that could be frozen"):
        train_view(custom, frozen=True)
