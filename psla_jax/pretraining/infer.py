"""Architecture of official weights, inferred from their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psla_jax.config import ModelConfig, Padding
from psla_jax.models.efficientnet import HEAD, SCALES, round_channels, scaled_blocks
from psla_jax.pretraining.state_dict import PretrainingError, without_wrappers

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """An inferred architecture; settings that the weights do not determine have the defaults of the config."""

    model: ModelConfig
    num_classes: int


def infer_architecture(arrays: Mapping[str, np.ndarray], padding: Padding = "symmetric") -> Architecture:
    """Returns the architecture of official weights.

    Args:
        arrays: weights by official name, with or without the names of wrappers.
        padding: padding of an EfficientNet, which the weights do not determine.

    Raises:
        PretrainingError: the weights belong to another kind of model; the message describes them.
    """
    shapes = {without_wrappers(name): value.shape for name, value in arrays.items()}
    if "effnet._conv_stem.weight" in shapes:
        blocks, features = _size({name.removeprefix("effnet."): shape for name, shape in shapes.items()})
        name = _variant(blocks, features)
        if not name:
            raise PretrainingError(
                f"the weights are of an EfficientNet with {blocks} blocks and {features} features, which is none of "
                f"{', '.join(SCALES)}: convert a checkpoint of one of these."
            )
    else:
        name = _torchvision(shapes, "model.")
    if not name:
        raise PretrainingError(_unknown_message(list(arrays), shapes))
    if padding != "symmetric" and name not in SCALES:
        raise PretrainingError(f"--padding {padding} is for EfficientNets, and these are weights of {name}: omit it.")
    pooling, heads, num_classes = _head(shapes)
    model = ModelConfig(name=name, pooling=pooling, heads=heads, padding=padding if name in SCALES else "symmetric")
    return Architecture(model, num_classes)


def backbone_name(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the backbone of weights under the names of its own library; empty if it is not supported."""
    shapes = {without_wrappers(name): value.shape for name, value in arrays.items()}
    if "_conv_stem.weight" in shapes:
        return _variant(*_size(shapes))
    return _torchvision(shapes, "")


def _size(shapes: Shapes) -> tuple[int, int]:
    """Returns the number of blocks and of features of an EfficientNet."""
    blocks = len({match[0] for name in shapes if (match := re.match(r"_blocks\.\d+\.", name))})
    return blocks, _rows(shapes, "_conv_head.weight")


def _variant(blocks: int, features: int) -> str:
    sizes = {name: (len(scaled_blocks(scale)), round_channels(HEAD, scale.width)) for name, scale in SCALES.items()}
    return next((name for name, size in sizes.items() if size == (blocks, features)), "")


def _torchvision(shapes: Shapes, prefix: str) -> str:
    if f"{prefix}layer4.2.conv3.weight" in shapes and f"{prefix}layer3.5.conv3.weight" in shapes:
        return "resnet50"
    return "mobilenet-v2" if f"{prefix}features.18.0.weight" in shapes else ""


def _head(shapes: Shapes) -> tuple[str, int, int]:
    """Returns the pooling, the number of heads and the number of classes."""
    heads = len([name for name in shapes if re.fullmatch(r"attention\.cla\.\d+\.weight", name)])
    if heads:
        return "attention", heads, _rows(shapes, "attention.cla.0.weight")
    if "attention.cla.weight" in shapes:
        return "attention" if "attention.att.weight" in shapes else "mean", 1, _rows(shapes, "attention.cla.weight")
    if "model.classifier.weight" in shapes:
        return "linear", 1, _rows(shapes, "model.classifier.weight")
    raise PretrainingError(
        "the weights have a backbone and no pooling head (no attention.* or model.classifier.*): use them for "
        "training with --pretraining.source instead."
    )


def _rows(shapes: Shapes, name: str) -> int:
    """Returns the number of rows of a weight, such as one per class; 0, which matches no model, if it is missing."""
    return (shapes.get(name) or (0,))[0]


def _unknown_message(names: Sequence[str], shapes: Shapes) -> str:
    if shapes.keys() & {"_conv_stem.weight", "conv1.weight", "features.0.0.weight"}:
        return (
            "these are weights of a backbone without a pooling head, as trained on ImageNet: use them for training "
            "with --pretraining.source instead."
        )
    return (
        f"the weights are of no PSLA architecture (their names start with {', '.join(names[:3])}): convert a "
        "checkpoint of EffNetAttention, ResNetAttention or MBNet."
    )
