"""Layers against PyTorch's, and hand-written gradients against automatic differentiation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.typing import DTypeLike
from torch.nn import functional

from psla_jax.models.convolution import (
    pointwise_conv,
    symmetric_padding,
)
from psla_jax.models.efficientnet import MBConv, Stage
from psla_jax.models.layers import (
    Affine,
    Backbone,
    BatchNorm,
    Conv,
    DropConnect,
    batch_statistics,
    gated_conv,
    image_means,
    recomputed,
    swish,
    swish_affine,
    torch_uniform,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("shape", "fan_in"), [((40, 30), 30), ((3, 3, 1, 200), 9)])
def test_initial_values_have_the_range_and_spread_of_pytorch(shape: tuple[int, ...], fan_in: int) -> None:
    values = np.asarray(torch_uniform(jax.random.key(0), shape, fan_in))
    bound = fan_in**-0.5
    assert np.abs(values).max() <= bound
    assert values.max() > 0.97 * bound
    assert values.min() < -0.97 * bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize(("depthwise", "groups"), [(False, 1), (True, 64)])
def test_convolutions_start_in_the_range_of_pytorch(depthwise: bool, groups: int) -> None:
    conv = Conv(64, 64, 3, depthwise=depthwise, bias=True, rngs=nnx.Rngs(0))
    reference = torch.nn.Conv2d(64, 64, 3, groups=groups)
    assert conv.kernel.shape == tuple(reference.weight.permute(2, 3, 1, 0).shape)
    for ours, theirs in ((conv.kernel, reference.weight), (conv.bias, reference.bias)):
        bound = theirs.abs().max().item()
        np.testing.assert_allclose(np.abs(np.asarray(ours[...])).max(), bound, rtol=0.1)


def test_swish_and_its_gradient_are_those_of_pytorch() -> None:
    x = np.concatenate([np.linspace(-40, 40, 20_001), normal(0, 500), [-1e30, -100.0, 0.0, 100.0]]).astype(np.float32)
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = functional.silu(given)
    expected.sum().backward()
    values, gradient = (np.asarray(a) for a in (swish(jnp.asarray(x)), jax.vmap(jax.grad(swish))(jnp.asarray(x))))
    for ours, theirs in ((values, expected.detach().numpy()), (gradient, given.grad.numpy())):
        np.testing.assert_allclose(ours, theirs, rtol=2.5e-7, atol=2.5e-6)
        small = np.abs(x) < 3
        np.testing.assert_allclose(ours[small], theirs[small], atol=6e-7)


def test_swish_of_what_is_not_finite() -> None:
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
        values, back = jax.vjp(image_means, jnp.asarray(x))
        (gradient,) = back(jnp.asarray(cotangent))
    np.testing.assert_allclose(values, x.mean(axis=(1, 2)), rtol=1e-12)
    expected = np.broadcast_to(cotangent[:, None, None] / (shape[1] * shape[2]), shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_image_means_of_bfloat16_are_added_in_float32() -> None:
    x = jnp.asarray(normal(0, 1, 40, 50, 4) + 100.0, jnp.bfloat16)
    means = image_means(x)
    assert means.dtype == jnp.float32
    np.testing.assert_allclose(means, np.asarray(x, np.float64).mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("features", [3, 200])  # Less than the image has points, and more.
@pytest.mark.parametrize("clips", [1, 2])
def test_a_gated_convolution_is_the_convolution_of_what_was_gated(clips: int, features: int) -> None:
    x, gate, kernel = normal(0, clips, 6, 7, 20), normal(1, clips, 1, 1, 20), normal(2, 1, 1, 20, features)
    cotangent = normal(3, clips, 6, 7, features)
    with jax.enable_x64(True):
        given = [jnp.asarray(a) for a in (x, gate, kernel)]
        ours, back = jax.vjp(gated_conv, *given)
        expected, plain_back = jax.vjp(
            lambda x, gate, kernel: jnp.einsum("bhwc,cf->bhwf", x * gate, kernel[0, 0]), *given
        )
        gradients = zip(back(jnp.asarray(cotangent)), plain_back(jnp.asarray(cotangent)), strict=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
    for value, plain in gradients:
        np.testing.assert_allclose(value, plain, rtol=1e-11, atol=1e-11)


def build_norms(channels: int = 5) -> tuple[BatchNorm, torch.nn.BatchNorm2d]:
    """Our batch normalisation and PyTorch's, with the same weights that are not the initial ones."""
    theirs = torch.nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
    torch.nn.init.uniform_(theirs.weight, 0.5, 1.5)
    torch.nn.init.normal_(theirs.bias)
    ours = BatchNorm(channels)
    ours.scale[...] = theirs.weight.detach().numpy().copy()
    ours.bias[...] = theirs.bias.detach().numpy().copy()
    return ours, theirs


def in_training(norm: BatchNorm) -> BatchNorm:
    return nnx.view(norm, use_running_average=False)


def test_batch_norm_trains_and_evaluates_as_pytorch() -> None:
    ours, theirs = build_norms()
    train = in_training(ours)
    for step in range(3):
        x = (2.0 + step + 3.0 * normal(step, 2, 3, 4, 5)).astype(np.float32)
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
        np.testing.assert_allclose(train(jnp.asarray(x)), expected, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-5)
    x = normal(9, 2, 3, 4, 5).astype(np.float32)
    expected = theirs.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=1e-5)


def test_batch_norm_evaluation_leaves_the_statistics_alone() -> None:
    ours, _ = build_norms()
    ours(jnp.asarray(normal(0, 2, 3, 4, 5)) + 10)
    np.testing.assert_array_equal(ours.mean[...], np.zeros(5))
    np.testing.assert_array_equal(ours.var[...], np.ones(5))


def test_batch_norm_variance_does_not_cancel() -> None:
    """With a mean of 30 and a deviation of 0.01, E[x^2] - E[x]^2 has no correct digit in float32."""
    x = (30.0 + 0.01 * normal(0, 64, 5, 5, 1)).astype(np.float32)
    ours = BatchNorm(1, momentum=0.0)
    in_training(ours)(jnp.asarray(x))
    np.testing.assert_allclose(ours.var[...], x.astype(np.float64).var(ddof=1), rtol=1e-3)


def masked_norm(x: np.ndarray, valid: np.ndarray | None, rows: np.ndarray) -> list[np.ndarray]:
    """Outputs of the rows, gradient of a function of them for the input, and the running statistics."""
    norm = BatchNorm(5)
    norm.scale[...], norm.bias[...] = jnp.arange(1.0, 6.0), jnp.arange(5.0)
    graphdef, state = nnx.split(in_training(norm))

    def loss(x: jax.Array) -> tuple[jax.Array, tuple]:
        norm = nnx.merge(graphdef, state, copy=True)
        y = norm(x, None if valid is None else jnp.asarray(valid))[rows]
        return jnp.sum(jnp.sin(y)), (y, norm.mean[...], norm.var[...])

    (_, (y, mean, var)), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(x))
    return [np.asarray(value) for value in (y, mean, var, gradient)]


def test_masked_clips_do_not_count_for_batch_norm() -> None:
    x = normal(0, 5, 3, 4, 5).astype(np.float32)
    x[[1, 4]] += 100.0
    rows = np.array([0, 2, 3])
    *masked, gradient = masked_norm(x, np.array([1, 0, 1, 1, 0], np.float32), rows)
    *smaller, expected = masked_norm(x[rows], None, np.arange(3))
    for value, other in zip(masked, smaller, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)
    np.testing.assert_allclose(gradient[rows], expected, atol=1e-5)
    np.testing.assert_array_equal(gradient[[1, 4]], 0)


def test_drop_connect_drops_whole_clips_and_scales_the_rest() -> None:
    rate, clips = 0.3, 4000
    layer = nnx.view(DropConnect(rate), deterministic=False)
    x = 1.0 + np.abs(normal(0, clips, 1, 2, 3)).astype(np.float32)
    y = np.asarray(layer(jnp.asarray(x), jax.random.uniform(jax.random.key(0), (clips,))))
    kept = (y != 0).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(kept, (y != 0).any(axis=(1, 2, 3)))
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / clips)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation


def test_drop_connect_acts_in_the_training_view_only() -> None:
    x = jnp.ones((6, 1, 1, 2))
    layer = DropConnect(0.9)
    np.testing.assert_array_equal(layer(x, jnp.zeros(6)), x)
    np.testing.assert_array_equal(layer(x, None), x)
    np.testing.assert_array_equal(nnx.view(DropConnect(0.0), deterministic=False)(x, None), x)
    with pytest.raises(ValueError, match=r"rngs=nnx\.Rngs"):
        nnx.view(layer, deterministic=False)(x, None)


class Blocks(Backbone):
    """Two blocks of an EfficientNet."""

    def __init__(self) -> None:
        stage = Stage(1, 3, 1, 2, 8, 8)
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([MBConv(stage, symmetric_padding(3), 0.5, 0.9, jnp.float32, rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.run(self.blocks, x, jnp.ones(x.shape[0]), jax.random.uniform(jax.random.key(3), (2, x.shape[0])))


def test_blocks_computed_again_give_the_same_gradient_statistics_and_draws() -> None:
    x = jnp.asarray(normal(0, 4, 6, 7, 8), jnp.float32)

    def result(remat: bool) -> tuple[str, list[np.ndarray]]:
        view = nnx.view(Blocks(), deterministic=False, use_running_average=False, remat=remat)
        graphdef, params, rest = nnx.split(view, nnx.Param, ...)

        def loss(params: nnx.State, rest: nnx.State, x: jax.Array):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.sum(model(x) ** 2), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        program = str(jax.make_jaxpr(gradient)(params, rest, x))
        return program, [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(gradient)(params, rest, x))]

    (plain, kept), (again, repeated) = result(False), result(True)
    assert "remat" not in plain
    assert "remat" in again
    assert len(kept) == len(repeated)
    for one, other in zip(kept, repeated):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def plain_statistics(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    weight = valid[:, None, None, None]
    count = valid.sum() * x.shape[1] * x.shape[2]
    mean = jnp.sum(x * weight, (0, 1, 2)) / count
    return mean, jnp.sum((x - mean) ** 2 * weight, (0, 1, 2)) / count


@pytest.mark.parametrize("valid", [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_gradient_of_the_batch_statistics_is_that_of_autodiff_in_float64(valid: list[float]) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        x, kept = jnp.asarray(rng.standard_normal((3, 4, 5, 6)) + 3.0), jnp.asarray(valid)
        given = tuple(jnp.asarray(rng.standard_normal(6)) for _ in range(2))
        values, back = jax.vjp(lambda x: batch_statistics(x, kept)[:2], x)
        expected, plain_back = jax.vjp(lambda x: plain_statistics(x, kept), x)
        np.testing.assert_allclose(np.array(values), np.array(expected), rtol=1e-12)
        np.testing.assert_allclose(back(given)[0], plain_back(given)[0], rtol=1e-9, atol=1e-12)


def chain(x: jax.Array, affine: Affine, kernel: jax.Array) -> jax.Array:
    return pointwise_conv(swish(swish_affine(x, affine) * 2.0), kernel)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 5e-2)])
def test_what_is_recomputed_has_the_same_gradient_and_takes_less_memory(dtype: DTypeLike, tolerance: float) -> None:
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 8)), dtype)
    kernels = jnp.asarray(rng.standard_normal((6, 1, 1, 8, 8)) / 3, jnp.float32)

    def loss(link, x: jax.Array, kernels: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = link(x, (kernel[0, 0, 0], kernel[0, 0, 1]), kernel.astype(x.dtype))
        return jnp.sum(jnp.sin(x))

    compiled = {
        name: jax.jit(jax.grad(functools.partial(loss, link), (0, 1))).lower(x, kernels).compile()
        for name, link in {"kept": chain, "recomputed": recomputed(chain)}.items()
    }
    kept, again = (compiled[name](x, kernels) for name in ("kept", "recomputed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), again, kept)
    sizes = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    assert sizes["recomputed"] < 0.6 * sizes["kept"]
