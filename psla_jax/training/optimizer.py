"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from psla_jax.config import OptimizerConfig, PretrainingConfig

BACKBONE, HEAD = "backbone", "head"
"""Parameter groups of a model whose backbone is frozen or has a learning rate of its own."""


def learning_rate(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the schedule: linear warm-up, then a decay after epoch `decay_start` and every `decay_every` epochs.

    The reference keeps the rate constant for 50 steps at a time during warm-up, zero for the first 50; here it rises
    with every step.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        decays = jnp.maximum((epoch - config.decay_start) // config.decay_every + 1, 0)
        rate = config.learning_rate * jnp.power(config.decay, decays.astype(jnp.float32))
        return rate / jnp.maximum(max(config.warmup_steps, 1) / (step + 1.0), 1.0)

    return schedule


def adam(config: OptimizerConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns PyTorch's Adam with ``weight_decay``: L2 is added to the gradient before the moments, not decoupled."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_adam(b1=0.95, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate(config, steps_per_epoch)),
    )


def make_optimizer(
    config: OptimizerConfig, pretraining: PretrainingConfig, steps_per_epoch: int, backbone: str
) -> optax.GradientTransformation:
    """Returns the optimizer of a run, for a tree of parameters.

    `backbone` is the top-level name of the backbone's parameters where `pretraining` freezes it or gives it a learning
    rate of its own, and empty otherwise.
    """
    transform = adam(config, steps_per_epoch)
    if not backbone:
        return transform
    scaled = optax.chain(transform, optax.scale(pretraining.backbone_rate))
    of_backbone = optax.set_to_zero() if pretraining.freeze else scaled

    def groups(params: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map_with_path(lambda path, _: BACKBONE if path[0].key == backbone else HEAD, params)

    return optax.multi_transform({BACKBONE: of_backbone, HEAD: transform}, groups)
