"""The pooling heads against those of the PyTorch reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference
from flax import nnx
from tolerance import assert_close

from psla_jax.models.pooling import build_pooling

BATCH, FRAMES, CHANNELS, CLASSES = 3, 7, 24, 5


def build_pair(heads: int) -> tuple[nnx.Module, torch.nn.Module]:
    """Returns our pooling and the reference's with the same widely drawn weights; 0 heads is mean pooling."""
    torch.manual_seed(heads)
    theirs = torch_reference.build_pooling(CHANNELS, CLASSES, heads)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    ours = build_pooling("attention" if heads else "mean", CHANNELS, CLASSES, heads, rngs=nnx.Rngs(0))
    for name, value in torch_reference.to_numpy(theirs.state_dict()).items():
        assign(ours, name, value)
    return ours, theirs


def assign(module: nnx.Module, name: str, value: np.ndarray) -> None:
    """Sets the weight that PyTorch calls `name`."""
    *path, last = name.split(".")
    for part in path:
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    variable = getattr(module, {"weight": "kernel"}.get(last, last))
    variable[...] = value.reshape(value.shape[:2]).T[None, None] if last == "weight" else value


def make_features(frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((BATCH, frames, CHANNELS)).astype(np.float32)


def expected_scores(pooling: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return pooling(torch.from_numpy(features).transpose(1, 2).unsqueeze(3)).numpy()


@pytest.mark.parametrize("frames", [FRAMES, 1])
@pytest.mark.parametrize("heads", [0, 1, 2, 3, 4])
def test_scores_are_those_of_pytorch(heads: int, frames: int) -> None:
    ours, theirs = build_pair(heads)
    features = make_features(frames)
    scores = ours(jnp.asarray(features))
    assert scores.shape == (BATCH, CLASSES)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected_scores(theirs, features), atol=1e-6)


def test_heads_are_summed_with_their_weights() -> None:
    ours, theirs = build_pair(3)
    weight = np.array([0.0, 2.5, 0.0], np.float32)
    ours.head_weight[...] = weight
    theirs.head_weight.data = torch.from_numpy(weight)
    scores = np.asarray(ours(jnp.asarray(make_features())))
    assert_close(scores, expected_scores(theirs, make_features()), 1e-6)
    assert scores.max() > 1


@pytest.mark.parametrize("bias", [-200.0, 200.0])
@pytest.mark.parametrize("heads", [1, 4])
def test_saturated_attention_becomes_a_mean_over_time(heads: int, bias: float) -> None:
    """Clipping gives every frame the same weight; without it, attention of zero would divide zero by zero."""
    ours, theirs = build_pair(heads)
    for attention in ours.att if heads > 1 else [ours.att]:
        attention.bias[...] = jnp.full((CLASSES,), bias)
    for attention in theirs.att if heads > 1 else [theirs.att]:
        torch.nn.init.constant_(attention.bias, bias)
    scores = np.asarray(ours(jnp.asarray(make_features())))
    np.testing.assert_allclose(scores, expected_scores(theirs, make_features()), atol=1e-6)
    head_weight = np.asarray(ours.head_weight[...]) if heads > 1 else np.ones(1)
    classifiers = ours.cla if heads > 1 else [ours.cla]
    means = [
        1 / (1 + np.exp(-(make_features() @ np.asarray(cla.kernel[...])[0, 0] + np.asarray(cla.bias[...]))))
        for cla in classifiers
    ]
    np.testing.assert_allclose(scores, sum(w * m.mean(1) for w, m in zip(head_weight, means, strict=True)), atol=1e-5)


@pytest.mark.parametrize("valid", [FRAMES, 4])
@pytest.mark.parametrize("heads", [0, 1, 3])
def test_attention_is_the_relative_weight_of_each_frame(heads: int, valid: int) -> None:
    ours, _ = build_pair(heads)
    features = make_features()
    mask = np.broadcast_to(np.arange(FRAMES) < valid, (BATCH, FRAMES)).astype(np.float32)
    scores, attention = map(np.asarray, ours.frame_outputs(jnp.asarray(features), None if valid == FRAMES else mask))
    layers = {0: [], 1: [getattr(ours, "att", None)]}.get(heads, getattr(ours, "att", None))
    weights = [
        1 / (1 + np.exp(-(features @ np.asarray(att.kernel[...])[0, 0] + np.asarray(att.bias[...])))) for att in layers
    ] or [np.ones_like(scores)]
    weights = [w * mask[..., None] for w in weights]
    expected = np.mean([valid * w / w.sum(axis=1, keepdims=True) for w in weights], axis=0)
    assert_close(attention, expected, 2e-5)
    if heads < 2:
        pooled = ours(jnp.asarray(features), jnp.asarray(mask))
        np.testing.assert_allclose((attention * scores).sum(axis=1) / valid, pooled, atol=1e-5)


@pytest.mark.parametrize("heads", [0, 1])
def test_mean_and_single_head_start_as_the_reference(heads: int) -> None:
    pooling = build_pooling("attention" if heads else "mean", 600, 50, heads, rngs=nnx.Rngs(0))
    for convolution in [pooling.cla, pooling.att] if heads else [pooling.cla]:
        kernel = np.asarray(convolution.kernel[...])
        bound = np.sqrt(6 / 600)
        assert 0.99 * bound < kernel.max() <= bound
        assert -bound <= kernel.min() < -0.99 * bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
        np.testing.assert_array_equal(convolution.bias[...], 0)


def test_several_heads_start_as_pytorch_convolutions() -> None:
    pooling = build_pooling("attention", 600, 50, 3, rngs=nnx.Rngs(0))
    convolutions = [*pooling.att, *pooling.cla]
    bound = 600**-0.5
    for convolution in convolutions:
        kernel, bias = np.asarray(convolution.kernel[...]), np.asarray(convolution.bias[...])
        assert 0.99 * bound < kernel.max() <= bound
        assert -bound <= kernel.min() < -0.99 * bound
        assert 0.8 * bound < np.abs(bias).max() <= bound
    assert len({float(convolution.kernel[...][0, 0, 0, 0]) for convolution in convolutions}) == 6
    np.testing.assert_allclose(pooling.head_weight[...], np.full(3, 1 / 3), rtol=1e-6)


def test_the_number_of_heads_is_honoured() -> None:
    for heads in (2, 3, 5):
        pooling = build_pooling("attention", CHANNELS, CLASSES, heads, rngs=nnx.Rngs(0))
        assert len(pooling.att) == len(pooling.cla) == heads
        assert pooling.head_weight.shape == (heads,)


@pytest.mark.parametrize(
    ("name", "heads", "message"),
    [("max", 4, "'max' is unknown: choose one of mean, linear, attention"), ("attention", 0, "heads is 0")],
)
def test_a_pooling_that_does_not_exist(name: str, heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_pooling(name, CHANNELS, CLASSES, heads, rngs=nnx.Rngs(0))
