"""Training of every backbone in the forms of its layers for accelerators, which also run on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from tolerance import assert_close

from psla_jax.models.efficientnet import MBConv, Stage
from psla_jax.models.factory import build_model
from psla_jax.models.layers import Backbone
from psla_jax.models.mobilenet import InvertedResidual
from psla_jax.models.padding import symmetric_padding
from psla_jax.models.platforms import PLAIN, layers_for
from psla_jax.models.resnet import Bottleneck
from psla_jax.models.state import split_model
from psla_jax.models.views import train_view
from psla_jax.training.step import init_state, make_train_step


def efficientnet_blocks(rngs: nnx.Rngs) -> list[nnx.Module]:
    """Without and with expansion, with stride 2 on an image of few rows, and with a residual sum."""
    stages = [Stage(1, 3, 1, 1, 8, 8), Stage(1, 5, 2, 2, 8, 12), Stage(1, 5, 1, 2, 12, 12)]
    return [MBConv(stage, symmetric_padding(stage.kernel), 0.3, 0.9, jnp.float64, rngs) for stage in stages]


def mobilenet_blocks(rngs: nnx.Rngs) -> list[nnx.Module]:
    return [InvertedResidual(8, 12, 2, 2, jnp.float64, rngs), InvertedResidual(12, 12, 2, 1, jnp.float64, rngs)]


def resnet_blocks(rngs: nnx.Rngs) -> list[nnx.Module]:
    return [Bottleneck(8, 4, 2, jnp.float64, rngs), Bottleneck(16, 4, 1, jnp.float64, rngs)]


class Blocks(Backbone):
    """A sequence of blocks."""

    def __init__(self, blocks: list[nnx.Module]) -> None:
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        uniforms = jax.random.uniform(jax.random.key(0), (len(self.blocks), len(x)))
        return self.run_blocks(self.blocks, x, valid, *([uniforms] if isinstance(self.blocks[0], MBConv) else []))


def gradient_in_float64(blocks: list[nnx.Module], platform: str) -> tuple[Any, Any, Any]:
    """Returns loss, updated batch statistics and gradient of blocks in training, traced for a platform."""
    graphdef, (params, batch_stats) = nnx.graphdef(Blocks(blocks)), split_model(Blocks(blocks))
    params, batch_stats = jax.tree.map(jnp.float64, (params, batch_stats))
    x, valid = jax.random.normal(jax.random.key(1), (4, 6, 20, 8), jnp.float64), jnp.asarray([1.0, 0.0, 1.0, 1.0])

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        model = train_view(nnx.merge(graphdef, params, batch_stats))
        return jnp.sum(jnp.sin(model(x, valid)) * valid[:, None, None, None]), split_model(model)[1]

    with layers_for(platform):
        (value, updated), gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    return value, updated, gradient


@pytest.mark.parametrize("blocks", [efficientnet_blocks, mobilenet_blocks, resnet_blocks])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_forms_of_accelerators_have_the_gradients_of_plain_layers_in_float64(
    blocks: Callable[[nnx.Rngs], list[nnx.Module]], platform: str
) -> None:
    with jax.enable_x64(True):
        results = (gradient_in_float64(blocks(nnx.Rngs(0)), which) for which in (platform, PLAIN))
        for ours, expected in zip(*results, strict=True):
            # As one vector each, since some gradients and means are zero but for rounding.
            assert_close(ravel_pytree(ours)[0], ravel_pytree(expected)[0], 1e-11)


@pytest.mark.parametrize(("name", "platform"), [("resnet50", "gpu"), ("mobilenet-v2", "tpu")])
def test_baselines_train_in_a_jitted_step_on_accelerators(name: str, platform: str) -> None:
    model = build_model(name, num_classes=3, heads=1, rngs=nnx.Rngs(0))
    optimizer = optax.chain(optax.clip_by_global_norm(1e-5), optax.sgd(1.0))  # One step is of this length.
    spectrograms, labels = jax.random.normal(jax.random.key(1), (2, 40, 64)), jnp.eye(2, 3)
    batch = {"spectrogram": spectrograms, "labels": labels, "valid": jnp.ones(2)}
    step = jax.jit(make_train_step(model, optimizer))
    with layers_for(platform):
        state, first = step(init_state(model, optimizer), batch, jax.random.key(0))
        _, second = step(state, batch, jax.random.key(0))
    assert second["loss"] < first["loss"] < 2
