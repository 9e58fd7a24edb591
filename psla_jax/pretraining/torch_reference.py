"""Forward passes of the reference models in PyTorch, computed from their state dicts to verify conversions.

Apart from the tables of the architectures, the implementation is independent of the JAX modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from psla_jax.config import ModelConfig
from psla_jax.models.efficientnet import SCALES, scaled_blocks
from psla_jax.models.mobilenet import STAGES as MOBILENET_STAGES
from psla_jax.models.resnet import STAGES as RESNET_STAGES
from psla_jax.pretraining.state_dict import without_wrappers

FLOOR = 1e-7
"""Attention weights are clamped to [FLOOR, 1 - FLOOR]."""


def reference_scores(arrays: Mapping[str, np.ndarray], model: ModelConfig, spectrograms: np.ndarray) -> np.ndarray:
    """Returns the scores `(batch, classes)` of normalised spectrograms `(batch, frames, mels)`, computed by PyTorch.

    The weights `arrays` have their official names, with or without the names of wrappers.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    weights = {without_wrappers(name): torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    with torch.no_grad():
        image = torch.from_numpy(np.array(spectrograms)).transpose(1, 2)[:, None]
        layers = _Layers(weights)
        if model.name in SCALES:
            features = layers.efficientnet(image, model)
        else:
            features = layers.resnet(image) if model.name == "resnet50" else layers.mobilenet(image)
        return layers.pool(features.mean(dim=2), model).numpy()


class _Layers:
    """Layers and models in terms of the names of their weights. Images are `(batch, channels, height, width)`."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        import torch
        from torch.nn import functional

        self.weights, self.torch, self.functional = weights, torch, functional

    def conv(self, x: Any, name: str, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Any:
        """Applies a convolution with `padding` (before, after) in both directions; 1-channel kernels are depthwise."""
        kernel = self.weights[f"{name}.weight"]
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        x = self.functional.pad(x, padding * 2)
        return self.functional.conv2d(x, kernel, self.weights.get(f"{name}.bias"), stride, groups=groups)

    def norm(self, x: Any, name: str, epsilon: float = 1e-5) -> Any:
        mean, var, weight, bias = (
            self.weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return self.functional.batch_norm(x, mean, var, weight, bias, eps=epsilon)

    # ---- backbones

    def efficientnet(self, x: Any, model: ModelConfig) -> Any:
        swish = self.functional.silu
        size = SCALES[model.name].image_size

        def pads(kernel: int, stride: int) -> tuple[int, int]:
            nonlocal size
            outputs = math.ceil(size / stride)
            total = max((outputs - 1) * stride + kernel - size, 0)
            size = outputs
            return (kernel // 2, kernel // 2) if model.padding == "symmetric" else (total // 2, total - total // 2)

        x = swish(self.norm(self.conv(x, "effnet._conv_stem", 2, pads(3, 2)), "effnet._bn0", 1e-3))
        for index, block in enumerate(scaled_blocks(SCALES[model.name])):
            name, y = f"effnet._blocks.{index}", x
            if block.expand != 1:
                y = swish(self.norm(self.conv(y, f"{name}._expand_conv"), f"{name}._bn0", 1e-3))
            y = self.conv(y, f"{name}._depthwise_conv", block.stride, pads(block.kernel, block.stride))
            y = swish(self.norm(y, f"{name}._bn1", 1e-3))
            gate = swish(self.conv(y.mean(dim=(2, 3), keepdim=True), f"{name}._se_reduce"))
            y = y * self.torch.sigmoid(self.conv(gate, f"{name}._se_expand"))
            y = self.norm(self.conv(y, f"{name}._project_conv"), f"{name}._bn2", 1e-3)
            x = y + x if block.stride == 1 and block.channels == block.features else y
        return swish(self.norm(self.conv(x, "effnet._conv_head"), "effnet._bn1", 1e-3))

    def resnet(self, x: Any) -> Any:
        relu = self.functional.relu
        x = relu(self.norm(self.conv(x, "model.conv1", 2, (3, 3)), "model.bn1"))
        x = self.functional.max_pool2d(x, 3, 2, 1)
        for stage, (blocks, _, first_stride) in enumerate(RESNET_STAGES, 1):
            for block in range(blocks):
                name, stride = f"model.layer{stage}.{block}", first_stride if block == 0 else 1
                y = relu(self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
                y = relu(self.norm(self.conv(y, f"{name}.conv2", stride, (1, 1)), f"{name}.bn2"))
                y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
                if block == 0:
                    x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
                x = relu(y + x)
        return x

    def mobilenet(self, x: Any) -> Any:
        relu6 = self.functional.relu6
        x = relu6(self.norm(self.conv(x, "model.features.0.0", 2, (1, 1)), "model.features.0.1"))
        index, channels = 1, x.shape[1]
        for expand, features, blocks, first_stride in MOBILENET_STAGES:
            for block in range(blocks):
                name, stride, y = f"model.features.{index}.conv", first_stride if block == 0 else 1, x
                layer = 0
                if expand != 1:
                    y, layer = relu6(self.norm(self.conv(y, f"{name}.0.0"), f"{name}.0.1")), 1
                y = relu6(self.norm(self.conv(y, f"{name}.{layer}.0", stride, (1, 1)), f"{name}.{layer}.1"))
                y = self.norm(self.conv(y, f"{name}.{layer + 1}"), f"{name}.{layer + 2}")
                x = x + y if stride == 1 and channels == features else y
                index, channels = index + 1, features
        return relu6(self.norm(self.conv(x, f"model.features.{index}.0"), f"model.features.{index}.1"))

    # ---- pooling heads; features are `(batch, channels, frames)`

    def pool(self, features: Any, model: ModelConfig) -> Any:
        if model.pooling == "linear":
            weight, bias = self.weights["model.classifier.weight"], self.weights["model.classifier.bias"]
            return self.torch.sigmoid(self.functional.linear(features.mean(dim=2), weight, bias))
        if model.pooling == "mean":
            return self.torch.sigmoid(self.conv(features[..., None], "attention.cla"))[..., 0].mean(dim=2)
        if model.heads == 1:
            return self.attend(features, "")
        heads = [self.attend(features, f".{head}") for head in range(model.heads)]
        return sum(weight * head for weight, head in zip(self.weights["attention.head_weight"], heads))

    def attend(self, features: Any, head: str) -> Any:
        x = features[..., None]
        weights = self.torch.sigmoid(self.conv(x, f"attention.att{head}"))[..., 0].clamp(FLOOR, 1 - FLOOR)
        scores = self.torch.sigmoid(self.conv(x, f"attention.cla{head}"))[..., 0]
        return (weights / weights.sum(dim=2, keepdim=True) * scores).sum(dim=2)
