"""CPU forms of the layers against plain forms, hand-written gradients against automatic differentiation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.typing import DTypeLike
from tolerance import assert_close, assert_trees_close
from torch.nn import functional

from psla_jax.models import cpu_kernels
from psla_jax.models.convolution import depthwise_conv, pointwise_conv
from psla_jax.models.factory import build_model
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.layers import Affine, gated_conv, image_means, recomputed, row_means, swish, swish_affine
from psla_jax.models.padding import Pads, static_padding, symmetric_padding
from psla_jax.models.platforms import layers_for
from psla_jax.models.views import statistics_view, train_view

NAMES = ("efficientnet-tiny", "resnet50", "mobilenet-v2")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("name", "devices", "cores", "expected"),
    [("cpu", 1, 2, True), ("cpu", 1, 5, False), ("cpu", 2, 2, False), ("gpu", 1, 2, False)],
)
def test_one_cpu_device_of_few_cores_takes_clips_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str, devices: int, cores: int, expected: bool
) -> None:
    monkeypatch.setattr(cpu_kernels.os, "cpu_count", lambda: cores)
    with layers_for(name, devices):
        assert cpu_kernels.per_clip_is_faster() is expected


def spectrograms() -> jax.Array:
    return jnp.asarray(normal(0, 3, 70, 64), jnp.float32)


def model_with_statistics(name: str) -> nnx.Module:
    """A model whose running statistics are those of noise, so that its scores differ between clips."""
    model = build_model(name, num_classes=4, drop_connect=0.0, rngs=nnx.Rngs(0))
    nnx.jit(lambda model, x: statistics_view(model)(x))(model, spectrograms())
    return model


@pytest.mark.parametrize("name", NAMES)
def test_clips_one_by_one_and_in_a_batch_give_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, scores, programs = model_with_statistics(name), [], []
    for per_clip in (True, False):
        monkeypatch.setattr(cpu_kernels, "per_clip_is_faster", lambda per_clip=per_clip: per_clip)
        programs.append(str(jax.make_jaxpr(lambda x: model(x))(spectrograms())))
        scores.append(np.asarray(jax.jit(lambda x: model(x))(spectrograms())))
    assert ["scan" in program for program in programs] == [True, False]
    assert np.ptp(scores[0], axis=0).max() > 1e-3
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", [train_view, statistics_view])
def test_batch_statistics_are_never_those_of_one_clip(monkeypatch: pytest.MonkeyPatch, name: str, view) -> None:
    monkeypatch.setattr(cpu_kernels, "per_clip_is_faster", lambda: True)
    mapped = []
    monkeypatch.setattr(jax.lax, "map", lambda function, x: mapped.append(x))
    model = build_model(name, num_classes=4, rngs=AbstractRngs())
    nnx.eval_shape(lambda model, x: view(model)(x, jnp.ones(3), nnx.Rngs(drop=0)), model, spectrograms())
    assert mapped == []


def test_swish_and_its_gradient_are_those_of_pytorch() -> None:
    x = np.concatenate([np.linspace(-40, 40, 20_001), normal(0, 500), [-1e30, -100.0, 0.0, 100.0]]).astype(np.float32)
    argument = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = functional.silu(argument)
    expected.sum().backward()
    values, gradient = (np.asarray(a) for a in (swish(jnp.asarray(x)), jax.vmap(jax.grad(swish))(jnp.asarray(x))))
    for ours, theirs in ((values, expected.detach().numpy()), (gradient, argument.grad.numpy())):
        np.testing.assert_allclose(ours, theirs, rtol=2.5e-7, atol=2.5e-6)
        small = np.abs(x) < 3
        np.testing.assert_allclose(ours[small], theirs[small], atol=6e-7)


def test_swish_of_infinities_and_nan() -> None:
    x = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan])
    values, gradient = swish(x), jax.vmap(jax.grad(swish))(x)
    assert values[0] == jnp.inf
    np.testing.assert_allclose(values[1], 0.0, atol=2.5e-6)
    assert np.isnan(values[2])
    np.testing.assert_allclose(gradient[:2], [1.0, 0.0], atol=2.5e-6)
    assert np.isnan(gradient[2])


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 1, 4), (3, 4, 33, 16)])
def test_image_means_and_their_gradient(shape: tuple[int, ...]) -> None:
    x, cotangent = normal(0, *shape) + 3.0, normal(1, shape[0], shape[3])
    with jax.enable_x64(True):
        values, pull_back = jax.vjp(image_means, jnp.asarray(x))
        (gradient,) = pull_back(jnp.asarray(cotangent))
    assert_close(values, x.mean(axis=(1, 2)), 1e-12)
    assert_close(gradient, np.broadcast_to(cotangent[:, None, None] / (shape[1] * shape[2]), shape), 1e-12)


@pytest.mark.parametrize(("means", "axes"), [(image_means, (1, 2)), (row_means, 1)])
def test_means_of_bfloat16_are_added_in_float32(means, axes) -> None:
    x = jnp.asarray(normal(0, 1, 40, 50, 4) + 100.0, jnp.bfloat16)
    assert means(x).dtype == jnp.float32
    assert_close(means(x), np.asarray(x, np.float64).mean(axis=axes), 1e-6)


def plain_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        feature_group_count=x.shape[3],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def values_and_gradients(function, x, kernel, cotangent, stride: int, padding: Pads) -> list[np.ndarray]:
    """Returns the output of a depthwise convolution and its gradients for the input and the kernel."""

    def run(x, kernel, cotangent):
        y, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding), x, kernel)
        return y, *pull_back(cotangent)

    return [np.asarray(value) for value in jax.jit(run)(x, kernel, cotangent)]


def depthwise_cases() -> list[tuple[int, int, Pads, int, int]]:
    """Kernel, stride, padding, height, width: every combination of the network, odd and even sizes, a single frame."""
    cases = []
    for size in (3, 5):
        cases += [(size, 1, symmetric_padding(size), height, 10) for height in (7, 8, 9)]
        cases += [(size, 2, symmetric_padding(size), 4, 1)]
        for padding in (symmetric_padding(size), static_padding(size, 2, 260)):
            cases += [(size, 2, padding, 7, 10), (size, 2, padding, 8, 5)]
    return cases


@pytest.mark.parametrize("devices", [1, 8])  # One device computes the kernel's gradient clip by clip.
@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), depthwise_cases())
def test_depthwise_convolution_and_its_gradient(
    size: int, stride: int, padding: Pads, height: int, width: int, devices: int
) -> None:
    rows, columns = ((n + sum(pad) - size) // stride + 1 for n, pad in zip((height, width), padding, strict=True))
    with jax.enable_x64(True), layers_for("cpu", devices):
        arrays = normal(0, 2, height, width, 3), normal(1, size, size, 1, 3), normal(2, 2, rows, columns, 3)
        ours = values_and_gradients(depthwise_conv, *arrays, stride, padding)
        plain = values_and_gradients(plain_depthwise_conv, *arrays, stride, padding)
    for value, expected in zip(ours, plain, strict=True):
        assert value.dtype == np.float64
        assert_close(value, expected, 1e-12)


def test_depthwise_gradient_in_bfloat16_accumulates_in_float32() -> None:
    arrays = normal(0, 2, 9, 40, 3), normal(1, 3, 3, 1, 3), normal(2, 2, 9, 40, 3)
    rounded = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    ours = values_and_gradients(depthwise_conv, *rounded, 1, symmetric_padding(3))
    exact = [array.astype(jnp.float32) for array in rounded]
    for value, expected in zip(ours, values_and_gradients(plain_depthwise_conv, *exact, 1, symmetric_padding(3))):
        assert value.dtype == jnp.bfloat16
        assert_close(value, expected, 2**-7)


@pytest.mark.parametrize(("channels", "features"), [(1, 2), (16, 96), (17, 96), (16, 31)])
@pytest.mark.parametrize("clips", [1, 2])
def test_pointwise_convolution_and_its_gradients_are_those_of_a_product(
    clips: int, channels: int, features: int
) -> None:
    x, kernel = normal(0, clips, 4, 5, channels), normal(1, 1, 1, channels, features)
    cotangent = normal(2, clips, 4, 5, features)
    with jax.enable_x64(True):
        ours, pull_back = jax.vjp(pointwise_conv, jnp.asarray(x), jnp.asarray(kernel))
        x_gradient, kernel_gradient = pull_back(jnp.asarray(cotangent))
    assert ours.dtype == np.float64
    assert_close(ours, x @ kernel[0, 0], 1e-12)
    assert_close(x_gradient, cotangent @ kernel[0, 0].T, 1e-12)
    assert_close(kernel_gradient[0, 0], np.einsum("bhwc,bhwf->cf", x, cotangent), 1e-12)


def test_one_clip_of_few_channels_is_no_product_and_a_batch_is_one() -> None:
    kernel = jnp.ones((1, 1, 16, 32))
    programs = [str(jax.make_jaxpr(pointwise_conv)(jnp.ones((clips, 4, 5, 16)), kernel)) for clips in (1, 2)]
    assert ["dot_general" in program for program in programs] == [False, True]


def test_one_clip_of_bfloat16_is_added_in_float32() -> None:
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (normal(0, 1, 8, 9, 16), normal(1, 1, 1, 16, 32)))
    y = pointwise_conv(x, kernel)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)[0, 0]
    # Rounding to bfloat16 is relative to each element.
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("features", [3, 200])  # Fewer and more than the image has pixels.
@pytest.mark.parametrize("clips", [1, 2])
def test_a_gated_convolution_is_the_convolution_of_the_gated_input(clips: int, features: int) -> None:
    x, gate, kernel = normal(0, clips, 6, 7, 20), normal(1, clips, 1, 1, 20), normal(2, 1, 1, 20, features)
    cotangent = normal(3, clips, 6, 7, features)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in (x, gate, kernel)]
        ours, pull_back = jax.vjp(gated_conv, *arguments)
        expected, plain_pull_back = jax.vjp(
            lambda x, gate, kernel: jnp.einsum("bhwc,cf->bhwf", x * gate, kernel[0, 0]), *arguments
        )
        assert_close(ours, expected, 1e-12)
        assert_trees_close(pull_back(jnp.asarray(cotangent)), plain_pull_back(jnp.asarray(cotangent)), 1e-12)


def activate_and_project(x: jax.Array, affine: Affine, kernel: jax.Array) -> jax.Array:
    return pointwise_conv(swish(swish_affine(x, affine) * 2.0), kernel)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-7)])
def test_a_recomputed_function_has_the_same_gradient_and_needs_less_memory(dtype: DTypeLike, tolerance: float) -> None:
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 8)), dtype)
    kernels = jnp.asarray(rng.standard_normal((6, 1, 1, 8, 8)) / 3, jnp.float32)

    def loss(layer, x: jax.Array, kernels: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = layer(x, (kernel[0, 0, 0], kernel[0, 0, 1]), kernel.astype(x.dtype))
        return jnp.sum(jnp.sin(x))

    plain, again = (
        jax.jit(jax.grad(functools.partial(loss, layer), (0, 1))).lower(x, kernels).compile()
        for layer in (activate_and_project, recomputed(activate_and_project))
    )
    assert_trees_close(again(x, kernels), plain(x, kernels), tolerance)
    assert again.memory_analysis().temp_size_in_bytes < 0.6 * plain.memory_analysis().temp_size_in_bytes
