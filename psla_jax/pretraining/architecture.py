"""Which model a state dict belongs to, from its names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psla_jax.config import ModelConfig, Padding, Pooling
from psla_jax.models.efficientnet import HEAD, SCALES, blocks_of, round_channels
from psla_jax.pretraining.names import PREFIX, PretrainingError


@dataclass(frozen=True)
class Architecture:
    """A model as its weights show it. What they do not show (padding, drop-connect) has the defaults of the config."""

    model: ModelConfig
    num_classes: int


def infer(arrays: Mapping[str, np.ndarray], padding: Padding = "symmetric") -> Architecture:
    """The architecture of official weights.

    Args:
        arrays: by official name, with or without the ``module.`` of DataParallel.
        padding: of an EfficientNet: nothing in the weights tells.

    Raises:
        PretrainingError: for weights of anything else; the message names what was found.
    """
    shapes = {name.removeprefix(PREFIX): value.shape for name, value in arrays.items()}
    if "effnet._conv_stem.weight" in shapes:
        name = _efficientnet(shapes)
    elif "model.layer4.2.conv3.weight" in shapes and "model.layer3.5.conv3.weight" in shapes:
        name = "resnet50"
    elif "model.features.18.0.weight" in shapes:
        name = "mobilenet-v2"
    else:
        raise PretrainingError(_stranger(list(arrays)))
    if padding != "symmetric" and name not in SCALES:
        raise PretrainingError(f"--padding {padding} is for EfficientNets, and these are weights of {name}: omit it.")
    pooling, heads, num_classes = _head(shapes)
    model = ModelConfig(name=name, pooling=pooling, heads=heads, padding=padding if name in SCALES else "symmetric")
    return Architecture(model, num_classes)


def _efficientnet(shapes: Mapping[str, tuple[int, ...]]) -> str:
    blocks, features = _size({name.removeprefix("effnet."): shape for name, shape in shapes.items()})
    found = _member(blocks, features)
    if found:
        return found
    raise PretrainingError(
        f"the weights are of an EfficientNet with {blocks} blocks and {features} features, which is none of "
        f"{', '.join(SCALES)}: convert a checkpoint of one of these."
    )


def _size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Number of blocks and of features of an EfficientNet."""
    blocks = len({match[0] for name in shapes if (match := re.match(r"_blocks\.\d+\.", name))})
    return blocks, (shapes.get("_conv_head.weight") or (0,))[0]


def _member(blocks: int, features: int) -> str:
    sizes = {name: (len(blocks_of(scale)), round_channels(HEAD, scale.width)) for name, scale in SCALES.items()}
    return next((name for name, size in sizes.items() if size == (blocks, features)), "")


def backbone_name(arrays: Mapping[str, np.ndarray]) -> str:
    """Which backbone has these weights, under the names that it has by itself; empty for none of ours."""
    shapes = {name: value.shape for name, value in arrays.items()}
    if "_conv_stem.weight" in shapes:
        return _member(*_size(shapes))
    if "layer4.2.conv3.weight" in shapes and "layer3.5.conv3.weight" in shapes:
        return "resnet50"
    return "mobilenet-v2" if "features.18.0.weight" in shapes else ""


def _head(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Pooling, int, int]:
    """Pooling, number of heads and number of classes."""
    heads = len([name for name in shapes if re.fullmatch(r"attention\.cla\.\d+\.weight", name)])
    if heads:
        return "attention", heads, _rows(shapes, "attention.cla.0.weight")
    if "attention.cla.weight" in shapes:
        return "attention" if "attention.att.weight" in shapes else "mean", 1, _rows(shapes, "attention.cla.weight")
    if "model.classifier.weight" in shapes:
        return "linear", 1, _rows(shapes, "model.classifier.weight")
    raise PretrainingError(
        "the weights have a backbone and no pooling head (no attention.* or model.classifier.*): start a training from "
        "them with --pretraining.source instead."
    )


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Rows of a head's weight, one per class; 0 where there is no such, which no list of classes has."""
    return (shapes.get(name) or (0,))[0]


def _stranger(names: Sequence[str]) -> str:
    plain = {name.removeprefix(PREFIX) for name in names}
    if plain & {"_conv_stem.weight", "conv1.weight", "features.0.0.weight"}:
        return (
            "these are weights of a backbone without a tagger's head, as trained on ImageNet: start a training from "
            "them with --pretraining.source instead."
        )
    shown = ", ".join(list(names)[:3])
    return (
        f"the weights are of no architecture of PSLA (their names start with {shown}): convert a checkpoint of "
        "EffNetAttention, ResNetAttention or MBNet."
    )
