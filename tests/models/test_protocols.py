"""Backbones and heads of one's own: trained, tagged with and fine-tuned like those of the package."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import customs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from flax import nnx

import psla_jax
from psla_jax.config import (
    AggregationConfig,
    ConfigError,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    RunConfig,
    SamplingConfig,
)
from psla_jax.evaluation.scores import Scores
from psla_jax.ingredients import IngredientError
from psla_jax.models.factory import BACKBONES, build_model
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.layers import ModelError
from psla_jax.models.model_dir import CheckpointError, ModelCard, fingerprint, load_model, read_card, save_model
from psla_jax.models.protocols import parts
from psla_jax.models.state import split_model
from psla_jax.pretraining.initialize import start_from
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.runtime.sharding import Placement
from psla_jax.tagging.tagger import TaggerError
from psla_jax.training import loop
from psla_jax.training.trainer import make_trainer
from psla_jax.vocabulary.vocabulary import Vocabulary

OWN = ModelConfig("customs:Patches(stride=16)", "customs:Maximum(gain=0.5)")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_maps_32_frames_to_one_of_its_features(name: str) -> None:
    found = parts(build_model(name, num_classes=3, rngs=AbstractRngs()))
    features = jax.eval_shape(lambda x: found.features(x), jax.ShapeDtypeStruct((2, 96, 128), np.float32))
    assert features.shape == (2, 3, found.backbone.num_features)
    assert (found.stride, found.offset, found.has_frames, found.has_attention, found.takes_mask) == (32, 0, *[True] * 3)


def batch(num_samples: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "waveform": rng.normal(size=(4, num_samples)).astype(np.float32) * 0.1,
        "num_samples": np.full(4, num_samples, np.int32),
        "labels": rng.integers(0, 2, (4, 3)).astype(np.float32),
        "valid": np.ones(4, np.float32),
    }


@pytest.mark.parametrize("name", ["resnet50", "mobilenet-v2", OWN.name])
def test_a_step_changes_every_parameter_of_other_backbones(name: str) -> None:
    frontend, optimizer = FrontendConfig(64), OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    sampling = SamplingConfig(time_mask=4)
    config = RunConfig(model=ModelConfig(name), frontend=frontend, sampling=sampling, optimizer=optimizer)
    model = build_model(name, num_classes=3, rngs=nnx.Rngs(0))
    trainer = make_trainer(config, model, 1, Placement.over(jax.devices()[:1]))
    before, _ = split_model(model)
    data = trainer.placement.shard_batch(batch(trainer.frontend.num_samples))
    after, metrics = trainer.step(trainer.init(model), data, np.int32(0))
    assert 0 < float(metrics["loss"]) < 5
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after["params"])
    assert max(jax.tree.leaves(moved)) < 2e-3
    assert np.mean(np.array(jax.tree.leaves(moved)) > 0) > 0.95


def test_parts_of_ones_own_from_training_to_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = sounds.make(tmp_path / "data")
    optimizer = OptimizerConfig(learning_rate=1e-2, epochs=1, warmup_steps=0)
    settings = {"optimizer": optimizer, "aggregation": AggregationConfig(first=1)}
    model = ModelConfig(functools.partial(customs.Patches, stride=16), functools.partial(customs.Maximum, gain=0.5))
    assert model == OWN, "callables are recorded by their import paths"
    config = sounds.config(data, tmp_path / "run", model=model, **settings)
    loop.train(config)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["pooling"] == OWN.pooling
    assert "6 rows of an epoch have no clip" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"code, customs:Patches.*customs:Maximum\(gain=0.5\): load it with"):
        load_model(tmp_path / "run")
    kept = Scores.load(tmp_path / "run" / "scores" / "evaluation_average.npz")
    psla_jax.evaluate(tmp_path / "run", config.data.evaluation, trust=True, bootstrap=0, save=tmp_path / "s.npz")
    np.testing.assert_allclose(Scores.load(tmp_path / "s.npz").scores, kept.scores, atol=1e-6)

    tagger = psla_jax.load(tmp_path / "run", trust=True)
    recording = data / "evaluation00.wav"
    tags, timeline, embeddings = tagger.tag(recording), tagger.timeline(recording), tagger.embed(recording)
    assert (tagger.events_from, tagger.notes) == ("head", ())
    frames = len(timeline.times)
    assert timeline.scores.shape == (frames, 4)
    assert embeddings.frames.shape == (frames, 12)
    # The score of a clip is the largest of its frames, and a frame of the timeline is the mean of two of them.
    assert np.all(timeline.scores.max(axis=0) <= tags.scores + 1e-3)

    fine = sounds.config(data, tmp_path / "fine", model=model, **settings)
    fine = dataclasses.replace(fine, pretraining=PretrainingConfig(str(tmp_path / "run"), freeze=True))
    loop.train(fine)
    assert "head: 4 of 4 classes copied by mid, 0 new" in capsys.readouterr().out
    old, new = (split_model(load_model(tmp_path / run, trust=True).network) for run in ("run", "fine"))
    jax.tree.map(np.testing.assert_array_equal, [old[0]["model"], old[1]], [new[0]["model"], new[1]])
    assert np.abs(old[0]["classifier"]["weights"] - new[0]["classifier"]["weights"]).max() > 1e-3


@pytest.mark.parametrize("stride", [8, 32, 48, 64])
def test_times_are_right_for_any_stride(tmp_path: Path, stride: int) -> None:
    config = ModelConfig(f"customs:Loudness(stride={stride})", "customs:Gain")
    network = build_model(config.name, num_classes=4, pooling=config.pooling, rngs=nnx.Rngs(0))
    save_model(tmp_path / "m", ModelCard(config, FrontendConfig(192), sounds.VOCABULARY, {}), *split_model(network))
    rng, begin, end = np.random.default_rng(0), 3.2, 4.5
    samples = np.zeros(8 * 16_000, np.float32)
    samples[51_200:72_000] = 0.3 * rng.standard_normal(20_800)
    tagger = psla_jax.load(tmp_path / "m", trust=True)
    timeline = tagger.timeline(samples, 16_000)
    scores = timeline.scores[:, 0].astype(np.float64)
    assert len(scores) == 25
    middle = (scores.max() + scores.min()) / 2
    loud = np.flatnonzero(scores > middle)
    tolerance = 0.01 * stride / 2 + 0.17
    assert abs(timeline.times[loud[0]] - begin) < tolerance
    assert abs(timeline.times[loud[-1] + 1] - end) < tolerance


def build(name: str = OWN.name, pooling: str = "attention") -> nnx.Module:
    return build_model(name, num_classes=4, pooling=pooling, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig("customs:Coarse"), r"\(2, 3, 12\) instead of \(2, 5, 12\): correct its attributes stride \(8, "),
        (ModelConfig("customs:Wide"), r"\(2, 3, 24\) instead of \(2, 3, 12\): correct .* num_features \(12\)"),
        (ModelConfig(OWN.name, "customs:OneFrame"), r"arrays of the shapes \[\(2, 4\)\]: return .* \(2, 3, 4\)"),
        (ModelConfig("customs:Whole"), r"scores differ from its own by .*: return head\(backbone\(spectrograms\)\)"),
        (ModelConfig(OWN.name, "max"), "model.pooling is 'max': 'max' is unknown: choose one of mean, linear, att"),
        (ModelConfig(OWN.name, "customs:Maximum(loss=1)"), "model.pooling is .* has no option 'loss'"),
        (ModelConfig(OWN.name, "customs:needy_head"), "model.pooling: needy_head.* may take channels, classes, heads"),
        (
            ModelConfig("customs:Patches(depth=3)"),
            "model.name is .*no option 'depth': its parameters are stride, wid",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(tmp_path: Path, model: ModelConfig, message: str) -> None:
    config = sounds.config(sounds.make(tmp_path / "data"), tmp_path / "run", model=model)
    with pytest.raises((ModelError, IngredientError), match=message):
        loop.train(config)


def test_a_callable_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.pooling: .*lambda.* define it at the top level of a module"):
        ModelConfig(pooling=lambda channels: None)


def test_only_known_blocks_are_rematerialised() -> None:
    config = RunConfig(optimizer=OptimizerConfig(remat=True))
    placement = Placement.over(jax.devices()[:1])
    with pytest.raises(ConfigError, match="the blocks of efficientnet-b2 are not known"):
        make_trainer(config, build(), 1, placement)
    make_trainer(config, build("customs:Blocks"), 1, placement)


def test_a_head_of_ones_own_needs_trust_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    network = build("efficientnet-tiny", "customs:Plain")
    for name, pooling in (("own", "customs:Plain"), ("same", "customs:Plain()")):
        config = ModelConfig("efficientnet-tiny", pooling)
        save_model(tmp_path / name, ModelCard(config, FrontendConfig(96), sounds.VOCABULARY, {}), *split_model(network))
    with pytest.raises(CheckpointError, match="custom code, customs:Plain: load it with trust=True"):
        psla_jax.load(tmp_path / "own")
    assert fingerprint(tmp_path / "own", read_card(tmp_path / "own")) != fingerprint(
        tmp_path / "same", read_card(tmp_path / "same")
    )
    tagger = psla_jax.load(tmp_path / "own", trust=True, policy="mask")
    assert tagger.events_from == "windows"
    assert [note.partition(" has ")[2] for note in tagger.notes] == [
        "no head that takes a mask: --policy mask is as pad"
    ]
    assert tagger.embed(np.ones(16_000, np.float32), 16_000).frames.shape[1] == 320


def start(tmp_path: Path, model: ModelConfig, source: ModelConfig, mids: tuple[str, ...]) -> tuple[str, nnx.Module]:
    old = build_model(source.name, num_classes=4, pooling=source.pooling, rngs=nnx.Rngs(5))
    save_model(tmp_path / "old", ModelCard(source, FrontendConfig(64), sounds.VOCABULARY, {}), *split_model(old))
    new = build_model(model.name, num_classes=len(mids), pooling=model.pooling, rngs=nnx.Rngs(6))
    pretraining = PretrainingConfig(str(tmp_path / "old"))
    return start_from(new, model, pretraining, Vocabulary(mids, mids), FrontendConfig(64)), (old, new)


def test_classes_of_a_head_of_ones_own_are_copied_along_the_axis_that_they_have(tmp_path: Path) -> None:
    mids = ("/t/new", "/t/noise", *(f"/t/{i}" for i in range(9)), "/t/low")  # As many as there are channels.
    text, (old, new) = start(tmp_path, OWN, OWN, mids)
    assert text.endswith("head: 2 of 12 classes copied by mid, 10 new (/t/new, /t/0, /t/1, /t/2, /t/3, ...)")
    fresh = build_model(OWN.name, num_classes=12, pooling=OWN.pooling, rngs=nnx.Rngs(6))
    expected = np.array(fresh.classifier.weights[...])
    expected[[1, 11]] = np.array(old.classifier.weights[...])[[2, 0]]
    np.testing.assert_array_equal(new.classifier.weights[...], expected)
    np.testing.assert_array_equal(new.model.linear.kernel[...], old.model.linear.kernel[...])


def test_fine_tuning_imports_no_code_that_the_run_does_not_name(tmp_path: Path) -> None:
    with pytest.raises(PretrainingError, match=r"head of custom code, customs:Plain, which this run does not name"):
        start(tmp_path, ModelConfig(OWN.name), ModelConfig(OWN.name, "customs:Plain"), ("/t/low",))
    text, _ = start(tmp_path, OWN, ModelConfig(OWN.name, "mean"), ("/t/low",))
    assert "new head: the source has mean pooling" in text


def test_whole_models_of_ones_own_have_neither_embeddings_nor_a_mask(tmp_path: Path) -> None:
    config = ModelConfig("tiny:build")
    network = build_model("tiny:build", num_classes=4, rngs=nnx.Rngs(0))
    save_model(tmp_path / "m", ModelCard(config, FrontendConfig(96), sounds.VOCABULARY, {}), *split_model(network))
    tagger = psla_jax.load(tmp_path / "m", trust=True, policy="mask")
    assert "takes a mask" in tagger.notes[0]
    with pytest.raises(TaggerError, match="give it a backbone"):
        tagger.require_embeddings()
