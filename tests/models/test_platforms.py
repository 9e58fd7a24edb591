"""Forward-mode derivatives through the network, and the platform for which layers are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scoring import FRONTEND, stream
from tiny import TinyTagger
from tolerance import assert_close

import psla_jax
from psla_jax.aggregation.average import reestimate
from psla_jax.evaluation.predict import predict, score
from psla_jax.models import cpu_kernels
from psla_jax.models.efficientnet import EfficientNet
from psla_jax.models.factory import build_model
from psla_jax.models.layers import Conv, swish
from psla_jax.models.platforms import layers_for, num_devices, plain_layers, platform
from psla_jax.models.state import split_model
from psla_jax.models.views import apply, eval_view, statistics_view, train_view
from psla_jax.runtime.sharding import Placement
from psla_jax.tagging import network
from psla_jax.training.losses import LOSSES

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


class Recorder(TinyTagger):
    """A model that records for which devices it is traced."""

    def __call__(self, x: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None) -> jax.Array:
        TRACED_FOR.append((platform(), num_devices()))
        return super().__call__(x, valid, rngs)


TRACED_FOR: list[tuple[str, int]] = []


def test_scores_and_statistics_are_traced_for_the_devices_that_hold_the_clips() -> None:
    model = Recorder(5, nnx.Rngs(0))
    for devices in (1, 2, 1):
        placement = Placement.over(jax.devices()[:devices])
        weights = nnx.graphdef(model), *placement.replicate(jax.device_get(split_model(model)))
        TRACED_FOR.clear()
        score(weights, FRONTEND, stream(4, 4), placement.shard_rows, str)
        reestimate(weights, FRONTEND, stream(4, 4), placement.shard_rows)
        # The programs for one device are found again the second time.
        assert set(TRACED_FOR) <= {("cpu", devices)}
        assert TRACED_FOR or devices == 1
    TRACED_FOR.clear()
    predict(model, FRONTEND, stream(2, 2))
    assert set(TRACED_FOR) == {("cpu", 1)}


@pytest.mark.parametrize(("cores", "expected"), [(2, 1), (64, network.CPU_BATCH_SIZE)])
def test_a_tagger_takes_windows_as_its_one_device_does(monkeypatch, cores: int, expected: int) -> None:
    assert jax.device_count() > 1
    monkeypatch.setattr(cpu_kernels.os, "cpu_count", lambda: cores)
    assert network.default_batch_size() == expected
