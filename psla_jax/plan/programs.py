"""The steps of a training, lowered for devices that need not exist: all arguments are abstract."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding

from psla_jax.audio.frontend import Frontend
from psla_jax.config import RunConfig, is_exclusive
from psla_jax.evaluation.predict import scoring_program
from psla_jax.models.model_dir import abstract_model
from psla_jax.models.platforms import layers_for
from psla_jax.models.precision import activations, products
from psla_jax.models.state import split_model
from psla_jax.runtime.sharding import Placement
from psla_jax.training.resolve import with_numbers
from psla_jax.training.step import state_of_weights
from psla_jax.training.trainer import make_trainer

STEPS_PER_EPOCH = 1000
"""A schedule has the same operations for any number of steps."""


def simplified(config: RunConfig) -> RunConfig:
    """Returns the config without what needs the data or other files and does not change the cost of a step.

    The loss is that of several labels per clip if the datafile would tell, the normalisation of spectrograms has any
    numbers, and classes have no weights. There is no teacher.
    """
    loss = "bce" if config.optimizer.loss == "auto" else config.optimizer.loss
    optimizer = dataclasses.replace(config.optimizer, loss=loss, class_weights="")
    distill = dataclasses.replace(config.distill, teacher="", model=())
    return with_numbers(dataclasses.replace(config, optimizer=optimizer, distill=distill))


def train_step(config: RunConfig, num_classes: int, placement: Placement) -> jax.stages.Lowered:
    """Returns the lowered training step of a config (see :func:`simplified`) on the devices of a mesh."""
    config = simplified(config)
    model = abstract_model(config.model, num_classes, activations(config.optimizer.precision))
    trainer = make_trainer(config, model, STEPS_PER_EPOCH, placement)
    state = jax.eval_shape(
        lambda params, rest: state_of_weights(params, rest, trainer.optimizer, config.optimizer.ema),
        *split_model(model),
    )
    clips = placement.padded_size(config.data.batch_size, config.optimizer.accumulate)
    batch = _waveforms(clips, trainer.frontend.num_samples) | {
        "labels": jax.ShapeDtypeStruct((clips, num_classes), jnp.float32),
        "valid": jax.ShapeDtypeStruct((clips,), jnp.float32),
    }
    return trainer.lower(_placed(state, placement.replicated), _placed(batch, placement.split))


def evaluation_step(config: RunConfig, num_classes: int, placement: Placement) -> jax.stages.Lowered:
    """Returns the lowered program that scores a batch, at the highest precision as at the end of an epoch."""
    config = simplified(config)
    model = abstract_model(config.model, num_classes)
    frontend = Frontend.from_config(config.frontend)
    weights = _placed(split_model(model), placement.replicated)
    batch = _placed(_waveforms(placement.padded_size(config.data.batch_size), frontend.num_samples), placement.split)
    with layers_for(placement.platform, placement.mesh.size), products("highest"):
        program: Any = scoring_program(placement.platform)
        return program.lower(nnx.graphdef(model), frontend, is_exclusive(config.optimizer.loss), *weights, batch)


STEPS = {"train": train_step, "evaluation": evaluation_step}


def _waveforms(clips: int, num_samples: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "waveform": jax.ShapeDtypeStruct((clips, num_samples), jnp.float32),
        "num_samples": jax.ShapeDtypeStruct((clips,), jnp.int32),
    }


def _placed(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
