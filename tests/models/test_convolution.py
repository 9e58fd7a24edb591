"""Convolutions against PyTorch's, and the hand-written depthwise gradient against automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from psla_jax.models.convolution import (
    Pads,
    depthwise_conv,
    depthwise_conv_plain,
    patches_conv,
    pointwise_conv,
    static_padding,
    symmetric_padding,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def values_and_gradients(function, x, kernel, cotangent, stride: int, padding: Pads) -> list[np.ndarray]:
    """The output of a depthwise convolution and its gradients for the input and the kernel."""

    def run(x, kernel, cotangent):
        y, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding), x, kernel)
        return y, *pull_back(cotangent)

    return [np.asarray(value) for value in jax.jit(run)(x, kernel, cotangent)]


TENSORFLOW = {3: ((0, 1), (0, 1)), 5: ((1, 2), (1, 2))}
"""The static padding of a stride-2 convolution on an even image size, by kernel."""


def depthwise_cases() -> list[tuple[int, int, Pads, int, int]]:
    """Kernel, stride, padding, height, width: every combination of the network; odd and even sizes; a single frame."""
    cases = []
    for size in (3, 5):
        cases += [(size, 1, symmetric_padding(size), height, 10) for height in (7, 8, 9)]
        cases += [(size, 2, symmetric_padding(size), 4, 1)]
        for padding in (symmetric_padding(size), TENSORFLOW[size]):
            cases += [(size, 2, padding, 7, 10), (size, 2, padding, 8, 5)]
    return cases


@pytest.mark.parametrize("devices", [1, 8])  # One takes the clips one by one.
@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), depthwise_cases())
def test_depthwise_convolution_and_its_gradient(
    monkeypatch: pytest.MonkeyPatch, size: int, stride: int, padding: Pads, height: int, width: int, devices: int
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rows, columns = ((n + sum(pad) - size) // stride + 1 for n, pad in zip((height, width), padding, strict=True))
    with jax.enable_x64(True):
        arrays = normal(0, 2, height, width, 3), normal(1, size, size, 1, 3), normal(2, 2, rows, columns, 3)
        ours = values_and_gradients(depthwise_conv, *arrays, stride, padding)
        plain = values_and_gradients(depthwise_conv_plain, *arrays, stride, padding)
    for value, expected in zip(ours, plain, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_static_padding_is_that_of_tensorflow(size: int) -> None:
    assert static_padding(size, 2, 260) == TENSORFLOW[size]
    assert static_padding(size, 2, 65) == static_padding(size, 1, 260) == symmetric_padding(size)
    assert static_padding(1, 1, 260) == symmetric_padding(1) == ((0, 0), (0, 0))


def test_depthwise_gradient_in_bfloat16_accumulates_in_float32() -> None:
    arrays = normal(0, 2, 9, 40, 3), normal(1, 3, 3, 1, 3), normal(2, 2, 9, 40, 3)
    rounded = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    ours = values_and_gradients(depthwise_conv, *rounded, 1, symmetric_padding(3))
    exact = values_and_gradients(
        depthwise_conv_plain, *(a.astype(jnp.float32) for a in rounded), 1, symmetric_padding(3)
    )
    for value, expected in zip(ours, exact, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(value.astype(np.float32), expected, atol=2**-7 * np.abs(expected).max())


@pytest.mark.parametrize("padding", [symmetric_padding(3), TENSORFLOW[3]])
@pytest.mark.parametrize("channels", [1, 3])
def test_dense_convolution_is_that_of_pytorch(channels: int, padding: Pads) -> None:
    x, kernel = normal(0, 2, 9, 12, channels), normal(1, 3, 3, channels, 4)
    (top, bottom), (left, right) = padding
    image = functional.pad(torch.from_numpy(x.transpose(0, 3, 1, 2)), (left, right, top, bottom))
    expected = functional.conv2d(image, torch.from_numpy(kernel.transpose(3, 2, 0, 1)), stride=2)
    ours = patches_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 2, padding)
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("channels", "features"), [(1, 2), (16, 96), (17, 96), (16, 31)])
@pytest.mark.parametrize("clips", [1, 2])
def test_pointwise_convolution_and_its_gradients_are_those_of_a_product(
    clips: int, channels: int, features: int
) -> None:
    x, kernel = normal(0, clips, 4, 5, channels), normal(1, 1, 1, channels, features)
    cotangent = normal(2, clips, 4, 5, features)
    with jax.enable_x64(True):
        ours, back = jax.vjp(pointwise_conv, jnp.asarray(x), jnp.asarray(kernel))
        of_x, of_kernel = back(jnp.asarray(cotangent))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, x @ kernel[0, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(of_x, cotangent @ kernel[0, 0].T, rtol=1e-12, atol=1e-12)
    expected = np.einsum("bhwc,bhwf->cf", x, cotangent)
    np.testing.assert_allclose(of_kernel[0, 0], expected, rtol=1e-12, atol=1e-12)


def test_one_clip_of_few_channels_is_no_product_and_a_batch_is_one() -> None:
    kernel = jnp.ones((1, 1, 16, 32))
    programs = [str(jax.make_jaxpr(pointwise_conv)(jnp.ones((clips, 4, 5, 16)), kernel)) for clips in (1, 2)]
    assert ["dot_general" in program for program in programs] == [False, True]


def test_one_clip_of_bfloat16_is_added_in_float32() -> None:
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (normal(0, 1, 8, 9, 16), normal(1, 1, 1, 16, 32)))
    y = pointwise_conv(x, kernel)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)[0, 0]
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-5)


def test_depthwise_convolution_is_that_of_pytorch() -> None:
    x, kernel = normal(0, 2, 8, 11, 6), normal(1, 5, 5, 1, 6)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
    expected = functional.conv2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), weight, stride=2, padding=2, groups=6)
    ours = depthwise_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 2, symmetric_padding(5))
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)
