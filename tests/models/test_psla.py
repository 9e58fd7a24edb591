"""The whole model against the PyTorch reference: scores in evaluation, five optimizer steps in training."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_reference
from flax import nnx
from jax.flatten_util import ravel_pytree
from tolerance import assert_close
from torch_reference import ReferenceTagger, make_reference, make_spectrograms

from psla_jax.models.factory import build_model
from psla_jax.models.views import apply, eval_view, statistics_view, train_view
from psla_jax.pretraining.state_dict import load_state_dict, to_state_dict
from psla_jax.training.losses import binary_cross_entropy
from psla_jax.training.optimizer import adam as make_adam

CLASSES = 20
LIMIT = 1e-5
"""Largest difference of the scores of two float32 implementations; PyTorch's own rounding error is about 3e-6."""


def load(reference: ReferenceTagger, name: str = "efficientnet-b0", **settings) -> nnx.Module:
    """Returns our model with the reference's weights, in its evaluation view."""
    settings = {"num_classes": CLASSES, "drop_connect": 0.0, **settings}
    model = build_model(name, rngs=nnx.Rngs(0), **settings)
    load_state_dict(model, torch_reference.to_numpy(reference.state_dict()))
    return model


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef: nnx.GraphDef, state: nnx.State, spectrograms: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state)(spectrograms)


def call(model: nnx.Module, values: np.ndarray) -> jax.Array:
    """Returns the model's output; compiled once per architecture and shape."""
    return _call(*nnx.split(model), jnp.asarray(values))


def assert_scores_of_reference(scores: jax.Array, reference: ReferenceTagger, spectrograms: np.ndarray) -> None:
    """Asserts that the scores are those of the reference, and that these depend on clip and class."""
    expected = torch_reference.evaluate(reference, spectrograms)
    assert scores.shape == expected.shape
    assert scores.dtype == jnp.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    assert expected.std(axis=1).min() > 0.05
    assert np.abs(np.asarray(scores) - expected).max() <= LIMIT


@pytest.fixture(scope="module")
def b2() -> tuple[nnx.Module, ReferenceTagger]:
    """The published architecture: B2, four heads, 527 classes."""
    reference = make_reference(2, num_classes=527)
    return load(reference, "efficientnet-b2", num_classes=527), reference


@pytest.mark.parametrize("frames", [1056, 500, 333])
def test_b2_scores_are_those_of_the_reference(b2: tuple[nnx.Module, ReferenceTagger], frames: int) -> None:
    model, reference = b2
    spectrograms = make_spectrograms(2, frames, seed=frames)
    assert_scores_of_reference(call(model, spectrograms), reference, spectrograms)


@pytest.mark.parametrize("heads", [0, 1, 3, 4])
def test_b0_scores_for_every_pooling(heads: int) -> None:
    reference = make_reference(heads=heads)
    model = load(reference, pooling="attention" if heads else "mean", heads=max(heads, 1))
    spectrograms = make_spectrograms(2, 333, seed=heads)
    features = call(model.effnet, spectrograms)
    assert_scores_of_reference(model.attention(features), reference, spectrograms)


def test_static_padding_is_that_of_the_later_release() -> None:
    reference = make_reference(padding="static")
    spectrograms = make_spectrograms(2, 333, seed=1)
    scores = call(load(reference, padding="static"), spectrograms)
    assert_scores_of_reference(scores, reference, spectrograms)
    symmetric = torch_reference.evaluate(make_reference(padding="symmetric"), spectrograms)
    assert np.abs(np.asarray(scores) - symmetric).max() > 0.01


def test_a_clip_of_one_frame_can_be_scored() -> None:
    reference = make_reference()
    spectrograms = make_spectrograms(2, frames=1, seed=2)
    scores = call(load(reference), spectrograms)
    assert np.abs(np.asarray(scores) - torch_reference.evaluate(reference, spectrograms)).max() <= LIMIT


def test_bfloat16_gives_float32_scores_near_those_of_float32() -> None:
    reference = make_reference()
    spectrograms = make_spectrograms(2, 333, seed=3)
    scores = call(load(reference, dtype=jnp.bfloat16), spectrograms)
    difference = np.abs(np.asarray(scores) - torch_reference.evaluate(reference, spectrograms))
    assert scores.dtype == jnp.float32
    assert 1e-4 < difference.max() < 0.1
    assert difference.mean() < 0.02


def train(model: nnx.Module, batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[float]:
    """Trains in place, one optimizer step per batch ``(spectrograms, labels, valid)``, and returns the losses.

    The optimizer updates all parameters as one vector, which is the same arithmetic and compiles faster.
    """
    graphdef, params, statistics = nnx.split(train_view(model), nnx.Param, nnx.BatchStat)
    vector, unravel = ravel_pytree(params)
    adam = make_adam(optax.constant_schedule(1e-3), weight_decay=5e-7)
    moments, losses = adam.init(vector), []

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiate(vector: jax.Array, statistics: nnx.State, spectrograms, labels, valid):
        model = nnx.merge(graphdef, unravel(vector), statistics, copy=True)
        losses = binary_cross_entropy(model(spectrograms, valid), labels)
        return jnp.sum(losses * valid) / jnp.sum(valid), nnx.state(model, nnx.BatchStat)

    for batch in batches:
        (loss, statistics), gradient = differentiate(vector, statistics, *batch)
        updates, moments = adam.update(gradient, moments, vector)
        vector = optax.apply_updates(vector, updates)
        losses.append(float(loss))
    nnx.update(model, unravel(vector), statistics)
    return losses


def training_batches(steps: int = 5, clips: int = 4, frames: int = 96) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    labels = (rng.random((steps, clips, CLASSES)) < 0.2).astype(np.float32)
    return [(make_spectrograms(clips, frames, seed=10 + step), labels[step]) for step in range(steps)]


def with_masked_rows(spectrograms: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the batch with two added rows of garbage, which `valid` masks out."""
    valid = np.array([1] * len(labels) + [0, 0], np.float32)
    garbage = np.full_like(spectrograms[:2], 50.0)
    return np.concatenate([spectrograms, garbage]), np.pad(labels, ((0, 2), (0, 0))), valid


def test_five_optimizer_steps_follow_pytorch() -> None:
    """Compares losses and, after the last step, running statistics. Only our batches have masked rows."""
    reference = make_reference()
    model = load(reference)
    losses = train(model, [with_masked_rows(*batch) for batch in training_batches()])
    expected = torch_reference.train(reference, training_batches())
    assert_close(losses, expected, 1e-4)
    assert max(expected) - min(expected) > 0.01
    weights = torch_reference.to_numpy(reference.state_dict())
    for name, value in to_state_dict(model).items():
        if "running" in name:
            assert_close(value, weights[name], 2e-4, name)


@pytest.fixture(scope="module")
def dropping() -> nnx.Module:
    """A small B0 whose residual branches are often dropped."""
    return build_model("efficientnet-b0", num_classes=3, drop_connect=0.9, rngs=nnx.Rngs(0))


def test_residual_branches_are_dropped_in_the_training_view_only(dropping: nnx.Module) -> None:
    """Block 14 of 16 drops a clip's branch with probability 0.9 * 14 / 16."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2, 2, 192)), jnp.float32)

    def added(block: nnx.Module, key: int) -> np.ndarray:
        run = nnx.jit(lambda block, x, uniform: block(x, None, uniform))
        uniform = jax.random.uniform(jax.random.key(key), (64,))
        return np.abs(np.asarray(run(block, x, uniform) - x)).max(axis=(1, 2, 3))

    block = dropping.effnet._blocks[14]
    assert (added(block, 0) > 0).all()
    first, second = added(train_view(dropping).effnet._blocks[14], 0), added(train_view(dropping).effnet._blocks[14], 1)
    for branch in (first, second):
        assert abs((branch > 0).mean() - (1 - 0.9 * 14 / 16)) < 4 * np.sqrt(0.79 * 0.21 / 64)
    assert ((first > 0) != (second > 0)).any()


def test_drop_connect_asks_for_random_numbers(dropping: nnx.Module) -> None:
    spectrograms = jax.ShapeDtypeStruct((1, 32, 128), jnp.float32)
    with pytest.raises(ValueError, match=r"rngs=nnx\.Rngs"):
        nnx.eval_shape(lambda model, x: model(x), train_view(dropping), spectrograms)
    nnx.eval_shape(lambda model, x: model(x), dropping, spectrograms)


def test_every_block_and_every_key_has_draws_of_its_own(dropping: nnx.Module) -> None:
    """The backbone draws one row of numbers per block, all different."""
    backbone = train_view(dropping).effnet
    first, again, other = (np.asarray(backbone._uniforms(5, nnx.Rngs(drop=key))) for key in (0, 0, 1))
    assert first.shape == (16, 5)
    assert len(np.unique(first)) == first.size
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first, other).any()


class Normed(nnx.Module):
    """A custom model with NNX's own batch normalisation, whose call takes no mask or random numbers."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(4, use_running_average=True, use_fast_variance=False, rngs=rngs)
        self.linear = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        return nnx.sigmoid(self.linear(self.norm(spectrograms)).mean(axis=1))


def test_views_share_their_variables_and_leave_the_model_as_it_was() -> None:
    model = Normed(2, nnx.Rngs(0))
    x = 5 + jnp.asarray(np.random.default_rng(0).standard_normal((3, 7, 4)), jnp.float32)
    before = model(x)
    train_view(model)(x)
    assert_close(model.norm.mean[...], 0.01 * x.mean((0, 1)), 1e-5)
    assert np.abs(np.asarray(model(x) - before)).max() > 0
    mean = np.asarray(model.norm.mean[...])
    eval_view(train_view(model))(x)
    model(x)
    np.testing.assert_array_equal(model.norm.mean[...], mean)


def test_statistics_view_sets_the_running_statistics_to_those_of_its_batch() -> None:
    model = build_model("efficientnet-b0", num_classes=3, rngs=nnx.Rngs(0)).effnet._bn0
    x = 5 + 2 * jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 7, 32)), jnp.float32)
    statistics_view(model)(x)
    assert_close(model.mean[...], x.mean((0, 1, 2)), 1e-5)
    assert_close(model.var[...], x.var((0, 1, 2), ddof=1), 1e-5)
    assert model.momentum == 0.99
    assert model.use_running_average


def test_a_model_of_your_own_is_built_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("models_of_mine")
    module.Normed = Normed
    monkeypatch.setitem(sys.modules, "models_of_mine", module)
    model = build_model("models_of_mine:Normed", num_classes=6, rngs=nnx.Rngs(0))
    scores = apply(model, jnp.ones((2, 5, 4)), jnp.ones(2), nnx.Rngs(drop=0))
    assert scores.shape == (2, 6)


def test_apply_passes_the_arguments_that_a_model_accepts() -> None:
    class MaskedModel(nnx.Module):
        def __call__(self, spectrograms: jax.Array, *, valid: jax.Array, rngs: nnx.Rngs) -> jax.Array:
            return (spectrograms.mean(axis=1) * valid[:, None] + rngs.drop.key[...].ndim).astype(jnp.bfloat16)

    scores = apply(MaskedModel(), jnp.ones((2, 5, 4)), jnp.array([1.0, 0.0]), nnx.Rngs(drop=0))
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(scores, [[1.0] * 4, [0.0] * 4])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("efficientnet-b9", {}, "efficientnet-b9.*efficientnet-b0"),
        ("efficientnet-b0", {"padding": "same"}, "padding is 'same'.*symmetric or static"),
        ("efficientnet-b0", {"pooling": "max"}, "pooling is 'max'"),
        ("efficientnet-b0", {"heads": 0}, "heads is 0"),
        ("psla_jax.nowhere:Model", {}, "psla_jax.nowhere:Model.*cannot be imported"),
        ("psla_jax.config:Nothing", {}, "psla_jax.config:Nothing.*cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_built(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"num_classes": 3, "rngs": nnx.Rngs(0), **settings})
