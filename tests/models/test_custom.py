"""Any NNX module can be trained, or the reason why not is said before training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from flax import nnx

import psla_jax
from psla_jax.config import AggregationConfig, ModelConfig, OptimizerConfig
from psla_jax.evaluation.scores import Scores
from psla_jax.models import custom
from psla_jax.models.factory import build_model
from psla_jax.models.layers import ModelError
from psla_jax.models.model_dir import load_model
from psla_jax.models.state import split_model
from psla_jax.training import loop
from psla_jax.training.trainer import Trainer


def test_dropout_and_bfloat16_train_and_every_score_is_computed_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The summary's scores are those of ``psla evaluate``; the same seed gives the same weights."""
    programs = []
    lower = Trainer.jitted_step.func
    monkeypatch.setattr(Trainer, "jitted_step", property(lambda self: recording(lower(self))))

    def recording(step):
        class Recorder:
            def lower(self, *arguments):
                lowered = step.lower(*arguments)
                programs.append(lowered.as_text())
                return lowered

            __call__ = staticmethod(step)

        return Recorder()

    data = sounds.make(tmp_path / "data")
    config = sounds.config(data, tmp_path / "run", model=ModelConfig("customs:Network"))
    optimizer = dataclasses.replace(config.optimizer, precision="bf16")
    config = dataclasses.replace(config, optimizer=optimizer)
    loop.train(config)
    assert "6 rows of an epoch have no clip, and the batch statistics of customs:Network" in capsys.readouterr().out
    assert "xbf16>" in programs[0]
    again = dataclasses.replace(config, run_dir=str(tmp_path / "again"))
    loop.train(again)
    weights = [split_model(load_model(run, trust=True).network) for run in (config.run_dir, again.run_dir)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    run = tmp_path / "run"
    best = run / "models" / "average"
    psla_jax.evaluate(best, config.data.evaluation, trust=True, bootstrap=0, save=tmp_path / "scores.npz")
    kept = Scores.load(run / "scores" / "evaluation_average.npz")
    np.testing.assert_allclose(Scores.load(tmp_path / "scores.npz").scores, kept.scores, atol=1e-6)


def test_a_model_is_built_in_its_evaluation_view_and_streams_differ_by_key() -> None:
    model = build_model("customs:Network", num_classes=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, 40, 128))
    np.testing.assert_array_equal(model(x), model(x))
    np.testing.assert_allclose(model(x)[:1], model(x[:1]), atol=1e-6)  # Batch statistics would differ.
    outputs = []
    for seed in (0, 0, 1):
        view = psla_jax.train_view(model)
        custom.attach_streams(view, jax.random.key(seed))
        outputs.append(np.asarray(view(x)))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_recurrent_layers_and_scalar_parameters_can_be_trained_saved_and_loaded(tmp_path: Path) -> None:
    data = sounds.make(tmp_path / "data", train=8, validation=3, evaluation=3)
    optimizer = OptimizerConfig(learning_rate=1e-2, epochs=1, warmup_steps=0)
    average = AggregationConfig(first=1)
    model = ModelConfig("customs:Recurrent")
    config = sounds.config(data, tmp_path / "run", model=model, optimizer=optimizer, aggregation=average)
    loop.train(config)
    loaded = load_model(tmp_path / "run", trust=True)
    assert loaded.network.temperature[...].shape == ()
    assert float(loaded.network.temperature[...]) != 1.0
    kept = Scores.load(tmp_path / "run" / "scores" / "evaluation_average.npz")
    psla_jax.evaluate(tmp_path / "run", config.data.evaluation, trust=True, bootstrap=0, save=tmp_path / "s.npz")
    np.testing.assert_allclose(Scores.load(tmp_path / "s.npz").scores, kept.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Half", r"output\.bias of the model 'customs:Half' has the type bfloat16: .* set param_dtype=jnp\.float32"),
        ("Logits", r"returns scores from .* return probabilities in \[0, 1\]"),
        ("Frames", r"to scores of the shape \(2, 40, 4\): return one score per class, \(2, 4\)"),
        ("Tuple", r"'customs:Tuple' cannot be called with .*'tuple' object has no attribute"),
        ("Mismatched", r"'customs:Mismatched' cannot be called with spectrograms of the shape \(2, 40, 128\) \(\w+: "),
        ("function", "'customs:function' builds a function: return an nnx.Module"),
        ("Growing", "changes the number, shapes or types of its variables"),
        ("Listed", r"has a random stream at streams\.noise\."),
    ],
)
def test_what_cannot_be_trained_is_said_before_training(tmp_path: Path, name: str, message: str) -> None:
    data = sounds.make(tmp_path / "data")
    with pytest.raises(ModelError, match=message):
        loop.train(sounds.config(data, tmp_path / "run", model=ModelConfig(f"customs:{name}")))


def test_a_model_without_a_dtype_cannot_compute_in_bfloat16() -> None:
    with pytest.raises(ModelError, match=r"'tiny:build' takes no argument dtype, so it cannot compute in bfloat16"):
        build_model("tiny:build", num_classes=4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
