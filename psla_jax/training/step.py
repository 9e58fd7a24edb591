"""The training step: frontend, augmentation, model, loss and optimizer in one pure function.

:func:`make_train_step` builds it from these ingredients, for one's own training loop. ``psla train`` is one client of
it: :class:`psla_jax.training.trainer.Trainer` compiles it for a mesh of devices.

The state is a dictionary of trees: ``params`` and ``batch_stats`` of the model, ``opt`` of the optimizer, ``progress``,
sums for the epoch's mean loss, and with an average of the weights ``ema``. It is replicated. Batches are split over the
devices, and batch statistics are those of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.models.state import split_model
from psla_jax.sampling.spectrogram import Augment, Batch
from psla_jax.training.losses import Loss, binary_cross_entropy
from psla_jax.training.objective import Consistency, Objective, Teach, microbatches

State = dict[str, Any]
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[State, Metrics]]
"""A training step: ``(state, batch, key) -> (state, metrics)``; with a teacher, its weights are a fourth argument."""


def init_state(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    *,
    ema: float = 0.0,
    sharding: jax.sharding.Sharding | None = None,
) -> State:
    """Returns the state before the first step.

    Its arrays are copies, because a jitted step may reuse (donate) their memory, and the model keeps its own.

    Args:
        model: the model, with its initial weights.
        tx: the optimizer.
        ema: as for :func:`make_train_step`.
        sharding: placement of the state; by default the first device.
    """
    state = state_of_weights(*split_model(model), tx, ema)
    return jax.device_put(jax.tree.map(np.array, state), sharding)


def state_of_weights(params: Any, batch_stats: Any, tx: optax.GradientTransformation, ema: float) -> State:
    """Returns the state of :func:`init_state` from arrays, which may be abstract."""
    opt = jax.jit(tx.init)(params)
    state = {"params": params, "batch_stats": batch_stats, "opt": opt, "progress": zero_progress()}
    if ema:
        state["ema"] = {"params": params, "batch_stats": batch_stats, "steps": jnp.zeros(())}
    return state


def make_train_step(
    model: nnx.Module | nnx.GraphDef,
    tx: optax.GradientTransformation,
    loss: Loss = binary_cross_entropy,
    augment: Augment | None = None,
    *,
    frontend: Frontend | None = None,
    accumulate: int = 1,
    frozen: str = "",
    remat: bool = False,
    local_statistics: bool = False,
    ema: float = 0.0,
    skip_nonfinite: bool = False,
    teach: Teach | None = None,
    consistency: Consistency | None = None,
) -> Step:
    """Returns a pure function ``step(state, batch, key) -> (state, metrics)``.

    It can be jitted, scanned over, sharded and differentiated. The state is that of :func:`init_state`; a batch has the
    device fields of :mod:`psla_jax.data.loader` as arrays: ``labels (batch, classes)``, ``valid (batch,)``, and
    ``waveform`` and ``num_samples``, or ``spectrogram (batch, frames, mels)`` instead of the two. Metrics are ``loss``
    and ``gradient_norm``. Rows that are not valid change no result.

    Args:
        model: the model (its structure counts, not its weights).
        tx: the optimizer.
        loss: ``loss(scores, labels, ...)``, see :mod:`psla_jax.training.losses`.
        augment: augmentation of the spectrograms, see :func:`psla_jax.sampling.spectrogram.compose`.
        frontend: converts waveforms to spectrograms; not needed for batches of spectrograms.
        accumulate: number of microbatches, a divisor of the rows of a batch.
        frozen: name of the backbone among the parameters if it is not trained.
        remat: evaluate the blocks of the backbone again in the backward pass.
        local_statistics: batch statistics are those of the clips of every device, not of the batch; the devices are
            those of :func:`psla_jax.models.platforms.layers_for`, by default all of them.
        ema: decay per step of the average of the weights in ``state["ema"]``; 0 for none. In the first steps it is
            smaller, ``(1 + steps) / (10 + steps)``, so that the initial weights are forgotten.
        skip_nonfinite: leave the state as it is, and count the step, if loss or gradient are not finite.
        teach: scores the augmented batch, ``teach(batch, weights)``, for the field ``teacher`` that a loss may take;
            the weights are then the fourth argument of the step.
        consistency: draws the augmentation of every clip twice and adds ``consistency(scores, other_scores)`` of the
            two views to the loss, which is otherwise the mean over both. Both pass through the model together.
    """
    graphdef = nnx.graphdef(model) if isinstance(model, nnx.Module) else model
    objective = Objective(graphdef, loss, augment, frontend, frozen, remat, local_statistics, teach, consistency)

    def step(state: State, batch: Batch, key: jax.Array, teacher_weights: Any = None) -> tuple[State, Metrics]:
        value, batch_stats, gradients = _accumulated(objective, state, batch, key, accumulate, teacher_weights)
        updates, opt = tx.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        count, progress = batch["valid"].sum(), state["progress"]
        progress = {**progress, "loss": progress["loss"] + value * count, "count": progress["count"] + count}
        new = {"params": params, "batch_stats": batch_stats, "opt": opt, "progress": progress}
        if ema:
            new["ema"] = _moved_average(state["ema"], params, batch_stats, ema)
        norm = optax.tree.norm(gradients)
        if skip_nonfinite:
            new = _skip_unless(jnp.isfinite(value) & jnp.isfinite(norm), new, state)
        return new, {"loss": value, "gradient_norm": norm}

    return step


def _accumulated(
    objective: Objective, state: State, batch: Batch, key: jax.Array, parts: int, teacher_weights: Any
) -> tuple[jax.Array, Any, Any]:
    """Returns loss, new batch statistics and gradients of a batch, computed in one piece or in microbatches."""
    params, batch_stats = state["params"], state["batch_stats"]
    total = jnp.maximum(batch["valid"].sum(), 1.0)
    if parts == 1:
        (loss, batch_stats), gradients = objective.value_and_grad(
            params, batch_stats, batch, key, total, teacher_weights
        )
        return loss, batch_stats, gradients

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        loss, batch_stats, gradients = carry
        (part_loss, batch_stats), part_gradients = objective.value_and_grad(
            params, batch_stats, part[0], part[1], total, teacher_weights
        )
        return (loss + part_loss, batch_stats, jax.tree.map(jnp.add, gradients, part_gradients)), None

    split = microbatches(batch, parts)
    zero = (jnp.zeros(()), batch_stats, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, (split, jax.random.split(key, parts)))[0]


def _moved_average(average: Any, params: Any, batch_stats: Any, decay: float) -> Any:
    """Returns the average after a step; arrays of integers, such as counters, are the latest ones."""
    steps = average["steps"]
    kept = jnp.minimum(decay, (1.0 + steps) / (10.0 + steps))

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        return kept * old + (1.0 - kept) * new if jnp.issubdtype(new.dtype, jnp.floating) else new

    new = {"params": params, "batch_stats": batch_stats}
    return {**jax.tree.map(mix, {name: average[name] for name in new}, new), "steps": steps + 1.0}


def zero_progress() -> dict[str, jax.Array]:
    """Returns the progress of an epoch before its first step: sum of losses, clips, and skipped steps."""
    return {"loss": jnp.zeros(()), "count": jnp.zeros(()), "skipped": jnp.zeros(())}


def _skip_unless(finite: jax.Array, new: State, old: State) -> State:
    """Returns the new state if the step was finite, else the old one with one more step counted as skipped."""
    chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    skipped = old["progress"]["skipped"] + jnp.where(finite, 0.0, 1.0)
    return {**chosen, "progress": {**chosen["progress"], "skipped": skipped}}
