"""Layers against PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tolerance import assert_close, assert_trees_close

from psla_jax.models.efficientnet import MBConv, Stage
from psla_jax.models.initializers import fan_in_uniform
from psla_jax.models.layers import Backbone, BatchNorm, Conv, DropConnect, ModelError
from psla_jax.models.padding import symmetric_padding
from psla_jax.models.platforms import layers_for


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("shape", "fan_in"), [((40, 30), 30), ((3, 3, 1, 200), 9)])
def test_initial_values_have_the_range_and_spread_of_pytorch(shape: tuple[int, ...], fan_in: int) -> None:
    values = np.asarray(fan_in_uniform(jax.random.key(0), shape, fan_in))
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


def build_norms(channels: int = 5) -> tuple[BatchNorm, torch.nn.BatchNorm2d]:
    """Returns our batch normalisation and PyTorch's with the same random weights."""
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
        assert_close(train(jnp.asarray(x)), expected, 2e-6)
    assert_close(ours.mean[...], theirs.running_mean.numpy(), 1e-5)
    assert_close(ours.var[...], theirs.running_var.numpy(), 1e-5)
    x = normal(9, 2, 3, 4, 5).astype(np.float32)
    expected = theirs.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    assert_close(ours(jnp.asarray(x)), expected, 2e-6)


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
    assert_close(ours.var[...], [x.astype(np.float64).var(ddof=1)], 1e-3)


def masked_norm(x: np.ndarray, valid: np.ndarray | None, rows: np.ndarray) -> list[np.ndarray]:
    """Returns the outputs of `rows`, the running statistics, and the input gradient of a function of these outputs."""
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
        assert_close(value, other, 1e-6)
    assert_close(gradient[rows], expected, 3e-6)
    np.testing.assert_array_equal(gradient[[1, 4]], 0)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_local_statistics_are_those_of_pytorch_on_the_part_of_every_device(platform: str) -> None:
    x, cotangent = (normal(seed, 4, 3, 2, 5).astype(np.float32) for seed in range(2))
    x[:2] += 3.0
    ours, _ = build_norms()
    view = nnx.view(ours, use_running_average=False, local_statistics=True)
    graphdef, variables = nnx.split(view)

    def normalised(scale: jax.Array, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        norm = nnx.merge(graphdef, variables, copy=True)
        norm.scale[...] = scale
        return norm(x), (norm.mean[...], norm.var[...])

    with layers_for(platform, 2):
        y, pull_back, (mean, var) = jax.vjp(normalised, ours.scale[...], jnp.asarray(x), has_aux=True)
    scale_gradient, x_gradient = pull_back(jnp.asarray(cotangent))
    scale_gradients, running = [], []
    for part in (slice(0, 2), slice(2, 4)):
        _, theirs = build_norms()
        theirs.weight.data, theirs.bias.data = (torch.tensor(np.asarray(v[...])) for v in (ours.scale, ours.bias))
        image = torch.from_numpy(x[part]).permute(0, 3, 1, 2).requires_grad_()
        expected = theirs(image)
        expected.backward(torch.from_numpy(cotangent[part]).permute(0, 3, 1, 2))
        assert_close(y[part], expected.permute(0, 2, 3, 1).detach().numpy(), 2e-6)
        assert_close(x_gradient[part], image.grad.permute(0, 2, 3, 1).numpy(), 1e-5)
        scale_gradients.append(theirs.weight.grad.numpy())
        running.append((theirs.running_mean.numpy(), theirs.running_var.numpy()))
    assert_close(scale_gradient, sum(scale_gradients), 1e-5)
    assert_trees_close((mean, var), tuple(np.mean(running, axis=0)), 1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_rows_of_padding_do_not_count_for_local_statistics(platform: str) -> None:
    x = normal(3, 6, 3, 2, 5).astype(np.float32)
    results = []
    for rows, valid in (([0, 1, 2, 3, 4, 5], [1, 1, 1, 0, 0, 0]), ([0, 1, 2], [1, 1, 1])):
        ours = BatchNorm(5)
        view = nnx.view(ours, use_running_average=False, local_statistics=True)
        with layers_for(platform, len(rows) // 3):  # The second device has no clip.
            y = view(jnp.asarray(x[rows]), jnp.asarray(valid))
        results.append((y[:3], ours.mean[...], ours.var[...]))
    assert_trees_close(results[0], results[1], 1e-6)


def test_a_batch_that_the_devices_cannot_share_is_an_error() -> None:
    view = nnx.view(BatchNorm(5), use_running_average=False, local_statistics=True)
    with layers_for("cpu", 2), pytest.raises(ModelError, match=r"a batch has 3 rows: .* a multiple of 2"):
        view(jnp.zeros((3, 1, 1, 5)))


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
        uniforms = jax.random.uniform(jax.random.key(3), (2, x.shape[0]))
        return self.run_blocks(self.blocks, x, jnp.ones(x.shape[0]), uniforms)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_blocks_computed_again_give_the_same_gradient_statistics_and_draws(platform: str) -> None:
    x = jnp.asarray(normal(0, 4, 6, 7, 8), jnp.float32)

    def result(remat: bool) -> tuple[str, list[jax.Array]]:
        view = nnx.view(Blocks(), deterministic=False, use_running_average=False, remat=remat)
        graphdef, params, batch_stats = nnx.split(view, nnx.Param, ...)

        def loss(params: nnx.State, batch_stats: nnx.State, x: jax.Array):
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            return jnp.sum(model(x) ** 2), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        with layers_for(platform):
            program = str(jax.make_jaxpr(gradient)(params, batch_stats, x))
            return program, jax.tree.leaves(jax.jit(gradient)(params, batch_stats, x))

    (plain_program, plain), (remat_program, remat) = result(False), result(True)
    assert "remat" not in plain_program
    assert "remat" in remat_program
    assert_trees_close(remat, plain, 1e-5)
