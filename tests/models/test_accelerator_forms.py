"""Training of every backbone in the forms of its layers for accelerators, which also run on a CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from tolerance import assert_close

from psla_jax.models.factory import BACKBONES, build_model
from psla_jax.models.platforms import PLAIN, layers_for
from psla_jax.models.state import split_model
from psla_jax.models.views import train_view
from psla_jax.training.step import init_state, make_train_step


def gradient_in_float64(name: str, platform: str) -> tuple[Any, Any, Any]:
    """Returns loss, updated batch statistics and gradient of a training view whose layers are traced for a platform."""
    backbone = BACKBONES[name](dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, (params, batch_stats) = nnx.graphdef(backbone), split_model(backbone)
    params, batch_stats = jax.tree.map(jnp.float64, (params, batch_stats))
    x, valid = jax.random.normal(jax.random.key(1), (3, 50, 64), jnp.float64), jnp.asarray([1.0, 0.0, 1.0])

    def loss(params: Any) -> tuple[jax.Array, Any]:
        model = train_view(nnx.merge(graphdef, params, batch_stats))
        features = model(x, valid, nnx.Rngs(drop=0))
        return jnp.sum(jnp.sin(features * valid[:, None, None])), split_model(model)[1]

    with layers_for(platform):
        (value, updated), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, updated, gradient


@pytest.mark.parametrize("name", ["efficientnet-tiny", "mobilenet-v2"])
def test_forms_of_accelerators_have_the_gradients_of_plain_layers_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        for ours, expected in zip(gradient_in_float64(name, "gpu"), gradient_in_float64(name, PLAIN), strict=True):
            # As one vector each, since some gradients and means are zero but for rounding.
            assert_close(ravel_pytree(ours)[0], ravel_pytree(expected)[0], 1e-10)


@pytest.mark.parametrize(
    ("name", "platform"),
    [("resnet50", "cpu"), ("resnet50", "gpu"), ("mobilenet-v2", "cpu"), ("mobilenet-v2", "tpu")],
)
def test_every_backbone_trains_in_a_jitted_step_on_every_platform(name: str, platform: str) -> None:
    model = build_model(name, num_classes=3, heads=1, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(0.1)
    spectrograms, labels = jax.random.normal(jax.random.key(1), (2, 40, 64)), jnp.eye(2, 3)
    batch = {"spectrogram": spectrograms, "labels": labels, "valid": jnp.ones(2)}
    step = jax.jit(make_train_step(model, optimizer))
    with layers_for(platform):
        state, first = step(init_state(model, optimizer), batch, jax.random.key(0))
        _, second = step(state, batch, jax.random.key(0))
    assert second["loss"] < first["loss"] < 2
