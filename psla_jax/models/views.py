"""Training, evaluation and statistics views of a model. All views of a model share its variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psla_jax import ingredients
from psla_jax.models.layers import ModelError


def train_view(
    model: nnx.Module, *, frozen: bool = False, remat: bool = False, local_statistics: bool = False
) -> nnx.Module:
    """Returns the training view: it normalises by the batch, updates running statistics, and drops branches.

    With `frozen`, the backbone (:func:`backbone_attribute`) stays in its evaluation view. With `remat`, the blocks of
    the backbone are evaluated again in the backward pass. With `local_statistics`, every device normalises by its part
    of the batch (:class:`psla_jax.models.layers.BatchNorm`).
    """
    settings = {"deterministic": False, "use_running_average": False, "remat": remat}
    view = nnx.view(model, **settings, local_statistics=local_statistics, raise_if_not_found=False)
    if frozen:
        name = backbone_attribute(view)
        setattr(view, name, eval_view(getattr(view, name)))
    return view


def backbone_attribute(model: nnx.Module) -> str:
    """Returns the name of the attribute with a model's backbone: ``effnet``, ``model`` or ``backbone``.

    Raises:
        ModelError: if the model has none of them.
    """
    for name in ("effnet", "model", "backbone"):
        if name in vars(model):
            return name
    raise ModelError(
        f"{type(model).__name__} has no backbone that could be frozen or trained at a separate learning rate: give it "
        "an attribute named model, or leave pretraining.freeze and pretraining.backbone_rate out."
    )


def eval_view(model: nnx.Module) -> nnx.Module:
    """Returns the evaluation view: it normalises by the running statistics and is deterministic."""
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def statistics_view(model: nnx.Module) -> nnx.Module:
    """Returns a deterministic view whose call sets the running statistics to those of its batch."""
    view = nnx.view(model, deterministic=True, use_running_average=False, raise_if_not_found=False)
    for _, module in nnx.iter_modules(view):
        if has_running_statistics(module):
            setattr(module, "momentum", 0.0)  # noqa: B010 - a module of any class
    return view


def has_running_statistics(module: Any) -> bool:
    """Returns whether a module is a batch normalisation, whose ``momentum`` is the decay of running statistics."""
    return hasattr(module, "momentum") and hasattr(module, "use_running_average")


def has_local_statistics(model: nnx.Module) -> bool:
    """Returns whether a model has batch normalisations whose statistics can be those of every device."""
    return any(hasattr(module, "local_statistics") for _, module in nnx.iter_modules(model))


def apply(model: nnx.Module, spectrograms: jax.Array, valid: jax.Array, rngs: nnx.Rngs) -> jax.Array:
    """Returns a model's scores in float32, passing ``valid`` and ``rngs`` if its call has such parameters."""
    scores = ingredients.call(model, spectrograms, field="model.name", valid=valid, rngs=rngs)
    return scores.astype(jnp.float32)
