"""ResNet-50 and MobileNetV2 against PyTorch: names and sizes of weights, scores for any length, a training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference
from flax import nnx
from tolerance import assert_close
from torch import nn

from psla_jax.models.factory import build_model
from psla_jax.models.layers import ModelError
from psla_jax.models.psla import PSLAModel
from psla_jax.models.views import apply, train_view
from psla_jax.pretraining.state_dict import load_state_dict, to_state_dict

NAMES = ("resnet50", "mobilenet-v2")
POOLING = {"resnet50": "attention", "mobilenet-v2": "linear"}
CLASSES = 20


@functools.cache
def reference(name: str) -> nn.Module:
    return torch_reference.make_network(name, CLASSES)


@functools.cache
def model(name: str) -> PSLAModel:
    """Returns our model with the reference's weights."""
    built = build_model(name, num_classes=CLASSES, pooling=POOLING[name], heads=1, rngs=nnx.Rngs(0))
    load_state_dict(built, torch_reference.to_numpy(reference(name).state_dict()))
    return built


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef: nnx.GraphDef, state: nnx.State, spectrograms: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state)(spectrograms)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1056, 333, 47])
def test_scores_are_those_of_the_reference_for_any_length(name: str, frames: int) -> None:
    spectrograms = torch_reference.make_spectrograms(2, frames, seed=frames)
    expected = torch_reference.evaluate(reference(name), spectrograms)
    scores = _call(*nnx.split(model(name)), jnp.asarray(spectrograms))
    assert scores.dtype == jnp.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loaded_weights_are_exported_unchanged(name: str) -> None:
    ours, theirs = to_state_dict(model(name)), torch_reference.to_numpy(reference(name).state_dict())
    assert set(ours) == {key for key in theirs if not key.endswith("num_batches_tracked")}
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


@pytest.mark.parametrize(("name", "backbone"), [("resnet50", 23_501_760), ("mobilenet-v2", 2_223_296)])
def test_parameter_counts_are_torchvisions_with_a_stem_of_one_channel(name: str, backbone: int) -> None:
    params = nnx.state(model(name).backbone, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == backbone


def test_a_training_step_has_the_references_loss_and_gradient() -> None:
    name, frames = "mobilenet-v2", 64
    built = build_model(name, num_classes=CLASSES, pooling="linear", heads=1, rngs=nnx.Rngs(0))
    theirs = torch_reference.make_network(name, CLASSES)
    load_state_dict(built, torch_reference.to_numpy(theirs.state_dict()))
    spectrograms = torch_reference.make_spectrograms(4, frames, seed=5)
    labels = np.random.default_rng(0).integers(0, 2, (4, CLASSES)).astype(np.float32)
    losses = torch_reference.train(theirs, [(spectrograms, labels)])
    stem = theirs.model.features[0][0].weight.grad.numpy().transpose(2, 3, 1, 0)
    graphdef, params, statistics = nnx.split(train_view(built), nnx.Param, nnx.BatchStat)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params: nnx.State, statistics: nnx.State):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        scores = jnp.clip(apply(model, jnp.asarray(spectrograms), jnp.ones(4), nnx.Rngs(drop=0)), 1e-7, 1 - 1e-7)
        loss = -jnp.mean(labels * jnp.log(scores) + (1 - labels) * jnp.log1p(-scores))
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    (loss, new), gradient = loss_of(params, statistics)
    assert_close(loss, losses[0], 1e-5)
    ours = np.asarray(nnx.to_pure_dict(gradient)["model"]["features"][0][0]["kernel"])
    # PyTorch in float32 differs from PyTorch in float64 by 0.7% here, because fifty layers use batch statistics of few
    # values; two float32 computations differ by 0.5% to 1.4%, depending on the processor.
    assert np.linalg.norm(ours - stem) <= 0.03 * np.linalg.norm(stem)
    running = theirs.model.features[0][1].running_mean.numpy()
    assert_close(new["model"]["features"][0][1]["mean"], running, 1e-5)


def test_any_pooling_goes_with_any_backbone() -> None:
    for pooling, heads in (("mean", 1), ("linear", 1), ("attention", 1), ("attention", 3)):
        built = nnx.eval_shape(
            lambda p=pooling, h=heads: build_model("mobilenet-v2", num_classes=5, pooling=p, heads=h, rngs=nnx.Rngs(0))
        )
        shape = nnx.eval_shape(lambda m, x: m(x), built, jax.ShapeDtypeStruct((2, 70, 128), jnp.float32))
        assert shape.shape == (2, 5)


def test_only_efficientnets_have_static_padding() -> None:
    with pytest.raises(ModelError, match="padding is 'static' for resnet50"):
        build_model("resnet50", num_classes=5, padding="static", rngs=nnx.Rngs(0))
