"""Precision of products in training and scoring: what is traced for a platform, what is computed and stored."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from flax import nnx

import psla_jax
from psla_jax.cli.main import main
from psla_jax.config import ConfigError, FrontendConfig, ModelConfig, OptimizerConfig, RunConfig, from_json, to_json
from psla_jax.evaluation.scores import Scores
from psla_jax.models import views
from psla_jax.models.factory import build_model
from psla_jax.models.layers import BatchNorm
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.platforms import layers_for
from psla_jax.models.precision import activations, computed_in, products
from psla_jax.models.state import split_model

HIGHEST, DEFAULT, HIGH = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGH


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights, statistics of noise, and the classes of :mod:`sounds`."""
    directory = tmp_path_factory.mktemp("precision") / "model"
    network = build_model("efficientnet-tiny", num_classes=len(sounds.VOCABULARY), rngs=nnx.Rngs(0))
    for module in (module for _, module in nnx.iter_modules(network) if isinstance(module, BatchNorm)):
        module.momentum = 0.0  # The running statistics are those of the batch.
    noise = jax.random.normal(jax.random.key(0), (4, 101, 128))
    apply = nnx.jit(lambda network: views.apply(network, noise, jnp.ones(4), nnx.Rngs(drop=0)))
    apply(views.train_view(network))
    card = ModelCard(ModelConfig("efficientnet-tiny"), FrontendConfig(target_length=101), sounds.VOCABULARY)
    save_model(directory, card, *split_model(network))
    return directory


@pytest.mark.parametrize(
    ("platform", "precision", "expected"),
    [
        ("gpu", "highest", HIGHEST), ("gpu", "tf32", DEFAULT), ("gpu", "bf16", DEFAULT),
        ("tpu", "highest", HIGHEST), ("tpu", "tf32", HIGH), ("tpu", "bf16", HIGH),
        ("cpu", "highest", DEFAULT), ("cpu", "tf32", DEFAULT), ("cpu", "bf16", DEFAULT),
    ],
)  # fmt: skip
def test_products_are_traced_with_the_precision_of_the_platform(platform, precision, expected):
    network = build_model("efficientnet-tiny", num_classes=3, dtype=activations(precision), rngs=nnx.Rngs(0))
    with layers_for(platform), products(precision):
        program = jax.make_jaxpr(lambda x: network(x))(jnp.zeros((1, 33, 128)))
    found = Counter(re.findall(r"precision=(\S+)", str(program)))
    traced = {re.sub(r"[(),]|Precision\.", "", text) for text in found}
    assert len(found) > 0
    assert traced == {expected.name}


@pytest.mark.parametrize(("precision", "error"), [("tf32", 0.0), ("bf16", 0.1)])
def test_scores_say_in_what_they_were_computed(model, precision, error, tmp_path, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    data = sounds.make(tmp_path / "data", train=1, validation=1, evaluation=6) / "evaluation.json"
    saved = {}
    for name in ("highest", precision):
        path = tmp_path / f"{name}.npz"
        assert main(["evaluate", str(model), "--data", str(data), "--bootstrap", "0", "--precision", name, "--save",
                     str(path)]) == 0  # fmt: skip
        saved[name] = Scores.load(path)
    assert saved["highest"].computed_in == "float32"
    assert saved[precision].computed_in == computed_in(precision, jax.default_backend())
    difference = np.abs(saved["highest"].scores - saved[precision].scores).max()
    assert difference <= error
    assert (difference > 0) == (error > 0)


def test_a_tagger_computes_in_its_precision(model, tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    taggers = [psla_jax.load_tagger(model, precision=precision) for precision in ("highest", "tf32", "bf16")]
    scores = [tagger.tag(sound, sample_rate=16_000).scores for tagger in taggers]
    np.testing.assert_array_equal(scores[0], scores[1])
    difference = np.abs(scores[0] - scores[2]).max()
    assert 0 < difference < 0.1
    with pytest.raises(ConfigError, match="precision is 'float16': choose one of highest, tf32, bf16"):
        psla_jax.load_tagger(model, precision="float16")


@pytest.mark.parametrize(("earlier", "precision"), [("float32", "tf32"), ("bfloat16", "bf16")])
def test_configs_of_earlier_versions_are_read(earlier, precision):
    values = json.loads(to_json(RunConfig()))
    del values["optimizer"]["precision"]
    values["optimizer"]["compute"] = earlier
    assert from_json(json.dumps(values)) == RunConfig(optimizer=OptimizerConfig(precision=precision))
