"""Forward-mode derivatives through the network, and the platform for which layers are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerance import assert_close, assert_trees_close

import psla_jax
from psla_jax.models.efficientnet import EfficientNet
from psla_jax.models.factory import BACKBONES, build_model
from psla_jax.models.layers import Conv, swish
from psla_jax.models.platforms import PLAIN, layers_for, plain_layers
from psla_jax.models.state import split_model
from psla_jax.models.views import apply, eval_view, statistics_view, train_view
from psla_jax.training.losses import LOSSES
from psla_jax.training.step import init_state, make_train_step

LABELS = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def spectrograms() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 40, 64))


def loss_of_parameters(name: str, view: Callable[[nnx.Module], nnx.Module]) -> tuple[Callable[[Any], jax.Array], Any]:
    """Returns the mean loss as a function of the parameters, and parameters."""
    network = build_model(name, num_classes=3, heads=2, rngs=nnx.Rngs(0))
    nnx.jit(lambda model, x: statistics_view(model)(x))(network, spectrograms())
    graphdef, (params, batch_stats) = nnx.graphdef(network), split_model(network)

    def loss(params: Any) -> jax.Array:
        model = view(nnx.merge(graphdef, params, batch_stats))
        scores = apply(model, spectrograms(), jnp.ones(2), nnx.Rngs(drop=0))
        return LOSSES["bce"](jnp.clip(scores, 1e-3, 1 - 1e-3), LABELS).mean()

    return loss, params


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree)


def inner_product(a: Any, b: Any) -> float:
    return float(sum(np.vdot(np.float64(x), np.float64(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))))


@pytest.mark.parametrize(
    ("name", "view"),
    [("efficientnet-tiny", train_view), ("efficientnet-tiny", eval_view), ("mobilenet-v2", train_view)],
)
def test_forward_mode_through_a_whole_loss_agrees_with_the_gradients_of_training(name: str, view) -> None:
    loss, params = loss_of_parameters(name, view)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    direction = random_like(params, 2)
    with psla_jax.plain_layers():
        plain_value, slope = jax.jit(lambda p, t: jax.jvp(loss, (p,), (t,)))(params, direction)
    np.testing.assert_allclose(plain_value, value, rtol=1e-4)
    scale = np.sqrt(inner_product(gradient, gradient))
    np.testing.assert_allclose(slope, inner_product(gradient, direction), atol=2e-3 * scale)


@pytest.mark.parametrize("training", [True, False])
def test_forward_mode_agrees_with_finite_differences_in_float64(training: bool) -> None:
    with jax.enable_x64(True), plain_layers():
        backbone = EfficientNet("efficientnet-tiny", dtype=jnp.float64, drop_connect=0.0, rngs=nnx.Rngs(0))
        view = train_view(backbone) if training else eval_view(backbone)
        graphdef, weights = nnx.graphdef(view), split_model(view)
        x, t, noise = (jax.random.normal(jax.random.key(i), (2, 40, 64), jnp.float64) for i in range(3))
        loss = jax.jit(lambda x: jnp.sum(nnx.merge(graphdef, *weights)(x) * noise[:, :2, :1]))
        _, slope = jax.jvp(loss, (x,), (t,))
        _, derivative = jax.linearize(loss, x)
        step = 1e-5
        difference = (loss(x + step * t) - loss(x - step * t)) / (2 * step)
        slopes = [float(slope), float(derivative(t)), float(difference)]
    assert slopes[0] != 0
    np.testing.assert_allclose(slopes[:2], slopes[2], rtol=1e-6)


def gradient_in_float64(name: str, platform: str) -> tuple[Any, Any, Any]:
    """Returns loss, updated batch statistics and gradient of a training view whose layers are traced for a platform."""
    backbone = BACKBONES[name](dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, (params, batch_stats) = nnx.graphdef(backbone), split_model(backbone)
    # No bias is zero, so that no mean is, which would consist of rounding errors.
    params = jax.tree.map(
        jnp.add, jax.tree.map(jnp.float64, params), jax.tree.map(lambda a: a / 10, random_like(params, 3))
    )
    batch_stats = jax.tree.map(jnp.float64, batch_stats)
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
        expected = gradient_in_float64(name, PLAIN)
        assert_trees_close(gradient_in_float64(name, "gpu"), expected, 1e-9)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", PLAIN])
@pytest.mark.parametrize("name", ["efficientnet-tiny", "resnet50", "mobilenet-v2"])
def test_every_backbone_trains_in_a_jitted_step_on_every_platform(name: str, platform: str) -> None:
    model = build_model(name, num_classes=3, heads=1, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(0.1)
    batch = {"spectrogram": spectrograms(), "labels": LABELS, "valid": jnp.ones(2)}
    step = jax.jit(make_train_step(model, optimizer))
    with layers_for(platform):
        state, first = step(init_state(model, optimizer), batch, jax.random.key(0))
        _, second = step(state, batch, jax.random.key(0))
    assert second["loss"] < first["loss"] < 2


def test_a_jitted_function_is_traced_for_the_platform_of_its_call() -> None:
    conv = Conv(4, 4, 3, padding=((1, 1), (1, 1)), depthwise=True, rngs=nnx.Rngs(0))
    program = jax.jit(lambda x: swish(conv(x)))
    x = jnp.ones((1, 8, 8, 4))

    def has_a_convolution() -> bool:
        return "conv" in program.lower(x).as_text().replace("convert", "")

    assert not has_a_convolution()  # The tests run on a CPU.
    with layers_for("gpu"):
        assert has_a_convolution()
        elsewhere = program(x)
    with plain_layers():
        assert has_a_convolution()
    with layers_for("cpu"):
        assert not has_a_convolution()
    assert not has_a_convolution()
    assert_close(program(x), elsewhere, 1e-5)
