"""Batch statistics and batch normalisation with its activation, against automatic differentiation of plain forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import assert_close, assert_trees_close

from psla_jax.models.batch_norm import Activation, batch_statistics, identity, normalised

EPSILON = 1e-3
VALID = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
ACTIVATIONS = [identity, jax.nn.swish, jax.nn.relu, jax.nn.relu6]


def plain_statistics(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    weight = valid[:, None, None, None]
    count = valid.sum() * x.shape[1] * x.shape[2]
    mean = jnp.sum(x * weight, (0, 1, 2)) / count
    return mean, jnp.sum((x - mean) ** 2 * weight, (0, 1, 2)) / count


def plain_normalised(x: jax.Array, scale: jax.Array, bias: jax.Array, valid: jax.Array, activation: Activation):
    mean, var = plain_statistics(x, valid)
    return activation((x - mean) / jnp.sqrt(var + EPSILON) * scale + bias)


@pytest.mark.parametrize("valid", VALID)
def test_gradient_of_the_batch_statistics_is_that_of_autodiff_in_float64(valid: list[float]) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        x, clips = jnp.asarray(rng.standard_normal((3, 4, 5, 6)) + 3.0), jnp.asarray(valid)
        cotangents = tuple(jnp.asarray(rng.standard_normal(6)) for _ in range(2))
        values, pull_back = jax.vjp(lambda x: tuple(batch_statistics(x, clips))[:2], x)
        expected, plain_pull_back = jax.vjp(lambda x: plain_statistics(x, clips), x)
        assert_trees_close(values, expected, 1e-12)
        assert_close(pull_back(cotangents)[0], plain_pull_back(cotangents)[0], 1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("valid", VALID)
def test_values_and_gradients_of_one_function_are_those_of_autodiff_in_float64(
    valid: list[float], activation: Activation
) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        x, clips = jnp.asarray(2.0 * rng.standard_normal((3, 4, 5, 6)) + 3.0), jnp.asarray(valid)
        scale, bias, centre = (jnp.asarray(rng.standard_normal(6)) for _ in range(3))
        cotangent = jnp.asarray(rng.standard_normal(x.shape))
        (y, statistics), pull_back = jax.vjp(
            lambda *a: normalised(*a, clips, centre, EPSILON, activation), x, scale, bias
        )
        expected, plain_pull_back = jax.vjp(lambda *a: plain_normalised(*a, clips, activation), x, scale, bias)
        gradients = pull_back((cotangent, jax.tree.map(jnp.zeros_like, statistics)))
        assert_close(y, expected, 1e-12)
        assert_trees_close(tuple(statistics[:2]), plain_statistics(x, clips), 1e-12)
        assert statistics.num_values == 20 * sum(valid)
        assert_trees_close(gradients, plain_pull_back(cotangent), 1e-12)


def test_one_pass_near_the_centre_keeps_the_digits_of_the_variance() -> None:
    """With a mean of 30 and a deviation of 0.01, E[x^2] - E[x]^2 has no correct digit in float32."""
    x = (30.0 + 0.01 * np.random.default_rng(0).standard_normal((64, 5, 5, 1))).astype(np.float32)
    scale, bias, centre = jnp.ones(1), jnp.zeros(1), jnp.full(1, 29.95)
    _, statistics = normalised(jnp.asarray(x), scale, bias, jnp.ones(64), centre, EPSILON, identity)
    assert_close(statistics.mean, [x.astype(np.float64).mean()], 1e-6)
    assert_close(statistics.var, [x.astype(np.float64).var()], 1e-3)


def test_bfloat16_is_normalised_and_activated_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 20, 20, 4)) + 5.0, jnp.bfloat16)
    scale, bias = jnp.arange(1.0, 5.0), jnp.arange(4.0)

    def result(x: jax.Array):
        (y, statistics), pull_back = jax.vjp(
            lambda *a: normalised(*a, jnp.ones(3), jnp.zeros(4), EPSILON, jax.nn.swish), x, scale, bias
        )
        return y, statistics, pull_back((jnp.cos(y.astype(jnp.float32)).astype(y.dtype), statistics))

    (y, statistics, (x_gradient, *others)), exact = result(x), result(x.astype(jnp.float32))
    assert (y.dtype, x_gradient.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert_trees_close(tuple(statistics), tuple(exact[1]), 1e-6)
    np.testing.assert_allclose(y.astype(np.float32), exact[0], rtol=2**-8)
    assert_trees_close([x_gradient.astype(jnp.float32), *others], list(exact[2]), 0.02)
