"""Custom models as users write them; configs name them ``customs:Recurrent`` and so on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


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
