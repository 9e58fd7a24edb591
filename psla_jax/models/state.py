"""Variables of a model as nested dictionaries of arrays."""

from __future__ import annotations

from flax import nnx


def split_model(model: nnx.Module) -> tuple[dict, dict]:
    """Returns the parameters, and the other variables (batch statistics), as nested dictionaries of arrays.

    Random streams are no part of them: a training step has a key of its own.
    """
    params, _, batch_stats = nnx.state(model, nnx.Param, nnx.RngState, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
