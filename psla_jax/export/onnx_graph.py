"""ONNX nodes of convolutions with folded batch statistics, of the heads, and of the log-mel frontend.

Images are `(batch, channels, height, width)`, as ONNX has them; height is frequency and width is time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from psla_jax.audio.frontend import FLOOR, PRE_EMPHASIS, mel_filters
from psla_jax.config import FrontendConfig
from psla_jax.models import pooling
from psla_jax.models.exclusive import EPSILON

OPSET = 18
IR_VERSION = 9
"""Versions of ONNX that onnxruntime 1.16 and later read."""


class Graph:
    """Nodes and constants of an ONNX graph under construction. Values are referred to by their names."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Adds a constant and returns its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """Adds a constant vector of integers, such as axes."""
        return self.constant(values, np.int64)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns its name."""
        return self.add_split(kind, 1, *inputs, **attributes)[0]

    def add_split(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node with several outputs and returns their names."""
        outputs = [f"{kind.lower()}_{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def name(self, value: str, name: str) -> str:
        """Gives a value another name, as an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        return name

    def conv(self, x: str, conv: Any, norm: Any = None) -> str:
        """Adds a convolution (:class:`psla_jax.models.layers.Conv`) and the batch normalisation after it, folded."""
        kernel = np.asarray(conv.kernel[...], np.float64).transpose(3, 2, 0, 1)
        bias = np.zeros(len(kernel)) if conv.bias is None else np.asarray(conv.bias[...], np.float64)
        if norm is not None:
            scale, shift, mean, var = (
                np.asarray(getattr(norm, name)[...], np.float64) for name in ("scale", "bias", "mean", "var")
            )
            gain = scale / np.sqrt(var + norm.epsilon)
            kernel, bias = kernel * gain[:, None, None, None], (bias - mean) * gain + shift
        (top, bottom), (left, right) = conv.padding
        return self.add(
            "Conv", x, self.constant(kernel), self.constant(bias), kernel_shape=kernel.shape[2:],
            strides=[conv.stride] * 2, pads=[top, left, bottom, right], group=len(kernel) if conv.depthwise else 1,
        )  # fmt: skip

    def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """Adds ``x @ kernel + bias``."""
        return self.add("Add", self.add("MatMul", x, self.constant(kernel)), self.constant(bias))

    def swish(self, x: str) -> str:
        """Adds ``x * sigmoid(x)``."""
        return self.add("Mul", x, self.add("Sigmoid", x))

    def exact_sigmoid(self, x: str) -> str:
        """Adds ``1 / (1 + exp(-x))``.

        Sigmoid of onnxruntime is wrong by up to 1e-7, which is as much as the attention of some frames.
        """
        denominator = self.add("Add", self.add("Exp", self.add("Neg", x)), self.constant(1.0))
        return self.add("Reciprocal", denominator)

    def clip(self, x: str, low: float, high: float | None = None) -> str:
        """Adds bounds of all values."""
        bounds = [low] if high is None else [low, high]
        return self.add("Clip", x, *map(self.constant, bounds))

    def mean(self, x: str, *axes: int, keepdims: bool = False) -> str:
        """Adds a mean over axes."""
        return self.add("ReduceMean", x, self.integers(*axes), keepdims=int(keepdims))

    def sum(self, x: str, *axes: int, keepdims: bool = False) -> str:
        """Adds a sum over axes."""
        return self.add("ReduceSum", x, self.integers(*axes), keepdims=int(keepdims))


# ---- backbones: spectrograms `(batch, frames, mels)` to features `(batch, output frames, channels)`


def features(graph: Graph, spectrograms: str, name: str, backbone: Any) -> str:
    """Adds a backbone of that name, in its evaluation view."""
    image = graph.add("Transpose", spectrograms, perm=[0, 2, 1])
    image = graph.add("Unsqueeze", image, graph.integers(1))
    image = next(add for prefix, add in BACKBONES.items() if name.startswith(prefix))(graph, image, backbone)
    return graph.add("Transpose", graph.mean(image, 2), perm=[0, 2, 1])


def _efficientnet(graph: Graph, x: str, net: Any) -> str:
    x = graph.swish(graph.conv(x, net._conv_stem, net._bn0))
    for block in net._blocks:
        y = graph.swish(graph.conv(x, block._expand_conv, block._bn0)) if block.expands else x
        y = graph.swish(graph.conv(y, block._depthwise_conv, block._bn1))
        gate = graph.swish(graph.conv(graph.mean(y, 2, 3, keepdims=True), block._se_reduce))
        y = graph.add("Mul", y, graph.add("Sigmoid", graph.conv(gate, block._se_expand)))
        y = graph.conv(y, block._project_conv, block._bn2)
        x = graph.add("Add", y, x) if block.residual else y
    return graph.swish(graph.conv(x, net._conv_head, net._bn1))


def _resnet(graph: Graph, x: str, net: Any) -> str:
    x = graph.add("Relu", graph.conv(x, net.conv1, net.bn1))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block in (block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer):
        y = graph.add("Relu", graph.conv(x, block.conv1, block.bn1))
        y = graph.add("Relu", graph.conv(y, block.conv2, block.bn2))
        y = graph.conv(y, block.conv3, block.bn3)
        x = graph.conv(x, *block.downsample) if block.projects else x
        x = graph.add("Relu", graph.add("Add", y, x))
    return x


def _mobilenet(graph: Graph, x: str, net: Any) -> str:
    stem, *blocks, head = net.features
    x = graph.clip(graph.conv(x, *stem), 0, 6)
    for block in blocks:
        *hidden, project, norm = block.conv
        y = x
        for layers in hidden:
            y = graph.clip(graph.conv(y, *layers), 0, 6)
        y = graph.conv(y, project, norm)
        x = graph.add("Add", x, y) if block.residual else y
    return graph.clip(graph.conv(x, *head), 0, 6)


BACKBONES = {"efficientnet": _efficientnet, "resnet50": _resnet, "mobilenet-v2": _mobilenet}
"""Functions that add a backbone, by the beginning of its name."""


# ---- heads: features to scores `(batch, classes)`, and to scores and attention of every frame


def head_outputs(graph: Graph, x: str, name: str, head: Any) -> dict[str, str]:
    """Adds a head; returns the names of ``scores`` and, where it has them, ``frame_scores`` and ``attention``."""
    return POOLINGS[name](graph, x, head)


def _linear(graph: Graph, x: str, head: Any) -> dict[str, str]:
    logits = graph.linear(graph.mean(x, 1), np.asarray(head.kernel[...]), np.asarray(head.bias[...]))
    return {"scores": graph.exact_sigmoid(logits)}


def _mean(graph: Graph, x: str, head: Any) -> dict[str, str]:
    frames = graph.exact_sigmoid(_per_frame(graph, x, [head.cla]))
    return {"scores": graph.mean(frames, 1), "frame_scores": frames}


def _attention(graph: Graph, x: str, head: Any) -> dict[str, str]:
    several = hasattr(head, "head_weight")
    attention, classification = (list(m) if several else [m] for m in (head.att, head.cla))
    weights = np.asarray(head.head_weight[...]) if several else np.ones(1, np.float32)
    # One product for all heads, and one node for each sum over them.
    values = graph.exact_sigmoid(_per_frame(graph, x, [*attention, *classification]))
    classes = attention[0].kernel.shape[-1]
    shape = graph.integers(0, 0, 2, len(weights), classes)
    both = graph.add_split("Split", 2, graph.add("Reshape", values, shape), axis=2, num_outputs=2)
    att, cla = (graph.add("Squeeze", part, graph.integers(2)) for part in both)  # (batch, frames, heads, classes)
    att = graph.clip(att, pooling.EPSILON, 1 - pooling.EPSILON)
    att = graph.add("Div", att, graph.sum(att, 1, keepdims=True))
    weighted = graph.add("Mul", cla, graph.constant(weights[:, None]))
    count = graph.add("Cast", graph.add("Shape", x, start=1, end=2), to=TensorProto.FLOAT)
    return {
        "scores": graph.sum(graph.add("Mul", att, weighted), 1, 2),
        "frame_scores": graph.sum(weighted, 2),
        "attention": graph.add("Mul", graph.mean(att, 2), count),
    }


def _per_frame(graph: Graph, x: str, layers: Sequence[Any]) -> str:
    """Adds linear layers over the features of every frame, their outputs side by side."""
    kernels = np.concatenate([np.asarray(layer.kernel[...])[0, 0] for layer in layers], axis=1)
    return graph.linear(x, kernels, np.concatenate([np.asarray(layer.bias[...]) for layer in layers]))


POOLINGS = {"attention": _attention, "mean": _mean, "linear": _linear}
"""Functions that add a head, by the name of the pooling."""


# ---- frontend: waveforms `(batch, samples)` to spectrograms


def log_mel(graph: Graph, waveforms: str, config: FrontendConfig) -> str:
    """Adds the frontend. Clips shorter than the target length are padded as in :class:`psla_jax.audio.Frontend`.

    Mean removal, pre-emphasis, window and Fourier transform of a frame are one convolution, in float32.
    """
    mean = graph.mean(waveforms, 1, keepdims=True)
    x = graph.add("Unsqueeze", graph.add("Sub", waveforms, mean), graph.integers(1))
    matrix = _frame_transform(config)
    x = graph.add(
        "Conv", x, graph.constant(matrix[:, None]), strides=[config.hop_samples], kernel_shape=[config.window_samples]
    )
    filters = np.tile(mel_filters(config), (1, 2))  # for squares of real and imaginary parts
    energy = graph.add("MatMul", graph.constant(filters), graph.add("Mul", x, x))
    x = graph.add("Transpose", graph.add("Log", graph.clip(energy, float(FLOOR))), perm=[0, 2, 1])
    x = _padded(graph, x, config.target_length)
    return graph.add("Div", graph.add("Sub", x, graph.constant(config.mean)), graph.constant(config.std))


def _padded(graph: Graph, x: str, frames: int) -> str:
    """Adds zeros after the frames of `x (batch, n, mels)` up to a number of frames."""
    missing = graph.add("Sub", graph.integers(frames), graph.add("Shape", x, start=1, end=2))
    missing = graph.add("Max", missing, graph.integers(0))
    pads = graph.add("Concat", graph.integers(0, 0, 0, 0), missing, graph.integers(0), axis=0)
    return graph.add("Pad", x, pads)


def _frame_transform(config: FrontendConfig) -> np.ndarray:
    """Returns the matrix from the samples of a frame to the real and imaginary parts of its DFT, in float64."""
    window = config.window_samples
    identity, sample = np.eye(window), np.arange(window)
    centred = identity - 1.0 / window
    emphasis = identity - PRE_EMPHASIS * np.eye(window, k=-1)
    emphasis[0, 0] -= PRE_EMPHASIS  # The sample before the first one is the first one.
    hann = 0.5 - 0.5 * np.cos(2 * math.pi * sample / (window - 1))
    bins = np.arange(config.fft_size // 2)
    turns = np.outer(bins, sample) % config.fft_size / config.fft_size
    transform = np.concatenate([np.cos(2 * math.pi * turns), -np.sin(2 * math.pi * turns)])
    return (transform * hann) @ emphasis @ centred


def exclusive(graph: Graph, scores: str) -> str:
    """Adds the normalisation over the classes (:func:`psla_jax.models.exclusive.normalise`)."""
    scores = graph.clip(scores, EPSILON)
    return graph.add("Div", scores, graph.sum(scores, -1, keepdims=True))
