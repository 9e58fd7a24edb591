"""The architecture, layer by layer, against ``efficientnet-pytorch`` 0.7.0, without computing any values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch_reference import FEATURES, ReferenceTagger

from psla_jax.models.efficientnet import EfficientNet
from psla_jax.models.factory import build_model
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.psla import PSLAModel
from psla_jax.models.views import train_view

VARIANTS = range(8)


@functools.cache
def abstract_model(variant: int, padding: str = "symmetric") -> PSLAModel:
    """Returns our model without values in its variables."""
    name = f"efficientnet-b{variant}"
    return build_model(name, num_classes=527, heads=4, padding=padding, rngs=AbstractRngs())


@functools.cache
def abstract_reference(variant: int, padding: str = "symmetric") -> ReferenceTagger:
    """Returns the reference without values in its tensors."""
    with torch.device("meta"):
        return ReferenceTagger(variant, num_classes=527, heads=4, padding=padding)


def abstract_backbone(variant: int, padding: str = "symmetric") -> EfficientNet:
    return abstract_model(variant, padding).effnet


def count_parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count(variant: int) -> None:
    reference = abstract_reference(variant)
    for ours, theirs in ((abstract_model(variant), reference), (abstract_backbone(variant), reference.effnet)):
        assert count_parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters())
    assert abstract_backbone(variant).num_features == FEATURES[variant]


def test_parameter_count_of_the_published_model() -> None:
    assert count_parameters(abstract_model(2)) == 13_640_766


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_block_has_the_shape_of_the_reference(variant: int) -> None:
    blocks = list(abstract_reference(variant).effnet._blocks)
    ours = list(abstract_backbone(variant)._blocks)
    assert len(ours) == len(blocks)
    for block, reference in zip(ours, blocks, strict=True):
        depthwise = reference._depthwise_conv
        assert block._depthwise_conv.kernel.shape == tuple(depthwise.weight.permute(2, 3, 1, 0).shape)
        assert [block._depthwise_conv.stride] * 2 == list(depthwise.stride)
        assert block._se_reduce.kernel.shape[3] == reference._se_reduce.out_channels
        assert block._project_conv.kernel.shape[2:] == (depthwise.out_channels, reference._project_conv.out_channels)
        assert hasattr(block, "_expand_conv") == hasattr(reference, "_expand_conv")


@pytest.mark.parametrize("padding", ["symmetric", "static"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_padding_is_that_of_the_reference(variant: int, padding: str) -> None:
    ours, theirs = abstract_backbone(variant, padding), abstract_reference(variant, padding).effnet
    pairs = [(ours._conv_stem, theirs._conv_stem)]
    pairs += [(a._depthwise_conv, b._depthwise_conv) for a, b in zip(ours._blocks, theirs._blocks, strict=True)]
    for convolution, reference in pairs:
        left, right, top, bottom = reference.static_padding.padding
        assert convolution.padding == ((top, bottom), (left, right))


def test_static_padding_of_b2_differs_in_the_stem_and_the_first_stride() -> None:
    """The only difference between the two schemes at B2, and between the two versions of the reference's library."""
    blocks = list(abstract_backbone(2, "static")._blocks)
    paddings = [abstract_backbone(2, "static")._conv_stem.padding, *(block._depthwise_conv.padding for block in blocks)]
    uneven = [index for index, padding in enumerate(paddings) if padding == ((0, 1), (0, 1))]
    strides = [index for index, block in enumerate(blocks) if block._depthwise_conv.stride == 2]
    assert uneven == [0, 1 + strides[0]]
    others = [padding for index, padding in enumerate(paddings) if index not in uneven]
    assert all(top == bottom == left == right for (top, bottom), (left, right) in others)


@pytest.mark.parametrize("variant", [0, 2, 7])
def test_drop_connect_grows_with_depth(variant: int) -> None:
    rates = [block.drop_connect.rate for block in abstract_backbone(variant)._blocks]
    assert rates == pytest.approx([0.2 * index / len(rates) for index in range(len(rates))])


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 333, 500, 1056, 3000])
def test_output_frames_for_any_number_of_frames(frames: int) -> None:
    spectrograms = jax.ShapeDtypeStruct((2, frames, 128), jnp.float32)
    ours = nnx.eval_shape(lambda model, x: model(x), abstract_backbone(0), spectrograms)
    theirs = abstract_reference(0).eval().features(torch.zeros(2, frames, 128, device="meta"))
    assert ours.shape == (theirs.shape[0], theirs.shape[2], theirs.shape[1])
    assert ours.dtype == jnp.float32


def test_other_numbers_of_mel_bins_are_averaged_too() -> None:
    features = nnx.eval_shape(lambda model, x: model(x), abstract_backbone(0), jnp.zeros((1, 100, 64)))
    assert features.shape == (1, 4, 1280)


def test_static_padding_rejects_too_few_frames() -> None:
    model = abstract_backbone(0, "static")
    with pytest.raises(ValueError, match="spectrograms have 31 frames: static padding needs at least 32"):
        model(jnp.zeros((1, 31, 128)))


def test_the_random_numbers_of_a_clip_do_not_depend_on_rows_of_padding():
    """Drop-connect draws for every clip in turn, so that padding for the devices leaves the draws of the clips."""
    model = train_view(build_model("efficientnet-tiny", num_classes=3, rngs=nnx.Rngs(0)))
    few, many = (np.stack(list(model.backbone._uniforms(clips, nnx.Rngs(drop=5)))) for clips in (6, 16))
    np.testing.assert_array_equal(few, many[:, :6])
