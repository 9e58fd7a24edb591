"""Padding and convolutions against TensorFlow's and PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerance import assert_close
from torch.nn import functional

from psla_jax.models.convolution import dense_conv, depthwise_conv, max_pool
from psla_jax.models.padding import Pads, static_padding, symmetric_padding

TENSORFLOW = {3: ((0, 1), (0, 1)), 5: ((1, 2), (1, 2))}
"""Static padding of a stride-2 convolution on an even image size, by kernel."""


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("size", [3, 5])
def test_static_padding_is_that_of_tensorflow(size: int) -> None:
    assert static_padding(size, 2, 260) == TENSORFLOW[size]
    assert static_padding(size, 2, 65) == static_padding(size, 1, 260) == symmetric_padding(size)
    assert static_padding(1, 1, 260) == symmetric_padding(1) == ((0, 0), (0, 0))


@pytest.mark.parametrize("padding", [symmetric_padding(3), TENSORFLOW[3]])
@pytest.mark.parametrize("channels", [1, 3, 5])  # Few channels are a product over patches.
def test_dense_convolution_is_that_of_pytorch(channels: int, padding: Pads) -> None:
    x, kernel = normal(0, 2, 9, 12, channels), normal(1, 3, 3, channels, 4)
    (top, bottom), (left, right) = padding
    image = functional.pad(torch.from_numpy(x.transpose(0, 3, 1, 2)), (left, right, top, bottom))
    expected = functional.conv2d(image, torch.from_numpy(kernel.transpose(3, 2, 0, 1)), stride=2)
    ours = dense_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 2, padding)
    assert_close(ours, expected.permute(0, 2, 3, 1).numpy(), 1e-6)


def test_depthwise_convolution_is_that_of_pytorch() -> None:
    x, kernel = normal(0, 2, 8, 11, 6), normal(1, 5, 5, 1, 6)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
    expected = functional.conv2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), weight, stride=2, padding=2, groups=6)
    ours = depthwise_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 2, symmetric_padding(5))
    assert_close(ours, expected.permute(0, 2, 3, 1).numpy(), 1e-6)


def test_pixels_outside_the_image_do_not_count_for_max_pool() -> None:
    image = -jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    expected = [[-1.0, -2.0], [-5.0, -6.0]]
    np.testing.assert_array_equal(max_pool(image, 3, 2, 1)[0, :, :, 0], expected)


def test_max_pool_has_a_gradient_inside_jit() -> None:
    image = jnp.asarray([[0.0, 3.0], [2.0, 1.0]], jnp.bfloat16)[None, ..., None]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1))))(image)
    np.testing.assert_array_equal(gradient[0, ..., 0].astype(jnp.float32), [[0.0, 1.0], [0.0, 0.0]])
