"""Custom models as users write them; configs name them ``customs:Recurrent`` and so on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.layers import Backbone, BatchNorm, Conv
from psla_jax.models.pooling import FrameOutputs


class Network(nnx.Module):
    """Flax's own layers, which neither know of rows without a clip nor are in their evaluation view when built."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.norm = nnx.BatchNorm(128, rngs=rngs)
        self.hidden = nnx.Linear(128, 16, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.dropout(jax.nn.relu(self.hidden(self.norm(x))))
        return jax.nn.sigmoid(self.output(hidden.mean(axis=1).astype(jnp.float32)))


class Half(Network):
    """Parameters in bfloat16."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        super().__init__(num_classes, rngs)
        self.output = nnx.Linear(16, num_classes, param_dtype=jnp.bfloat16, rngs=rngs)


class Logits(Network):
    """Scores without a sigmoid."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(x[:, :, :16].mean(axis=1)) - 1


class Frames(Network):
    """Scores of every frame."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.output(x[:, :, :16]))


class Growing(Network):
    """Creates a variable in its first call."""

    def __call__(self, x: jax.Array) -> jax.Array:
        self.level = nnx.Variable(x.mean())
        return super().__call__(x)


class Listed(Network):
    """Random streams in a dictionary."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        super().__init__(num_classes, rngs)
        self.streams = nnx.data({"noise": rngs.fork()})


class Recurrent(nnx.Module):
    """A recurrent layer, which uses its random streams also in evaluation, and a scalar parameter."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.RNN(nnx.GRUCell(128, 8, rngs=rngs), rngs=rngs)
        self.output = nnx.Linear(8, num_classes, rngs=rngs)
        self.temperature = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.output(self.layer(x).mean(axis=1)) * self.temperature[...])


class Tuple(Network):
    """Scores and something else."""

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return super().__call__(x), x


class Mismatched(Network):
    """A layer for another number of mel bins."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x[:, :, :64])


def function(num_classes: int, rngs: nnx.Rngs) -> object:
    return lambda x: x


class Patches(nnx.Module):
    """A backbone: a linear map of patches of `stride` frames, with Flax's normalisation and dropout."""

    def __init__(self, stride: int = 16, width: int = 12, *, rngs: nnx.Rngs) -> None:
        self.stride, self.offset, self.num_features = stride, (stride - 1) / 2, width
        self.size = stride
        self.linear = nnx.Linear(stride * 128, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.size), (0, 0)))
        patches = x.reshape(x.shape[0], -1, self.size * x.shape[2])
        return self.dropout(jax.nn.relu(self.norm(self.linear(patches))))


class Coarse(Patches):
    """A backbone whose stride is not the one it names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(16, rngs=rngs)
        self.stride = 8


class Wide(Patches):
    """A backbone with another number of channels than it names."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([super().__call__(x)] * 2, axis=-1)


class Loudness(nnx.Module):
    """A backbone without parameters: the mean of every patch of `stride` frames, where sound is louder than silence."""

    num_features = 1

    def __init__(self, stride: int, rngs: nnx.Rngs) -> None:
        self.stride, self.offset = stride, (stride - 1) / 2

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.stride), (0, 0)), constant_values=-2)
        return x.reshape(x.shape[0], -1, self.stride * x.shape[2]).mean(axis=2, keepdims=True)


class Maximum(nnx.Module):
    """A head: the largest score of a frame; its parameter has the classes first."""

    def __init__(self, channels: int, classes: int, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.weights, self.gain = nnx.Param(jax.random.normal(rngs.params(), (classes, channels))), gain
        self.scale = nnx.Param(jnp.ones(channels))

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        scores = jax.nn.sigmoid(self.gain * (features * self.scale[...]) @ self.weights[...].T)
        return FrameOutputs(scores if mask is None else scores * mask[..., None])

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return self.frame_outputs(features, mask).scores.max(axis=1)


class Plain(nnx.Module):
    """A head without scores of frames, which takes no mask."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.linear(features.mean(axis=1)))


class OneFrame(Plain):
    """A head whose scores of frames lack the frames."""

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        return FrameOutputs(self(features))


class Gain(nnx.Module):
    """The features of sound themselves as scores of every class."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        return FrameOutputs(jnp.broadcast_to(jax.nn.sigmoid(features), (*features.shape[:2], self.classes)))

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.frame_outputs(features).scores.max(axis=1)


class Whole(nnx.Module):
    """A whole model with a backbone and a head, but another score than theirs."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.backbone = Patches(rngs=rngs)
        self.head = Plain(12, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.backbone(x)) / 2


def needy_head(channels: int, hidden: int) -> nnx.Module:
    raise AssertionError("it cannot be called")


class Blocks(Backbone):
    """A backbone with known blocks."""

    num_features, stride = 4, 1

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.norm = Conv(1, 4, rngs=rngs), BatchNorm(4)

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        blocks = [lambda x, valid: jax.nn.relu(self.norm(self.first(x), valid))]
        return self.run_blocks(blocks, x[..., None], valid).mean(axis=2)
