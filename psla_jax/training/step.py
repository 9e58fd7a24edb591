"""The training step: frontend, SpecAugment, model, loss and optimizer in one jitted function over a mesh of devices.

The state is a dictionary of trees: ``params`` and ``batch_stats`` of the model, ``opt`` of the optimizer, and
``progress``, sums for the epoch's mean loss. It is replicated. Batches are split over the devices, and batch statistics
are those of the global batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.config import ConfigError, RunConfig, SamplingConfig
from psla_jax.models import custom, views
from psla_jax.models.protocols import can_rematerialise
from psla_jax.models.state import split_model
from psla_jax.runtime import exported
from psla_jax.runtime.process import release_freed_memory
from psla_jax.runtime.sharding import CONTROL, Placement
from psla_jax.runtime.xla_options import training_options
from psla_jax.sampling.specaugment import noise_and_roll, spec_augment
from psla_jax.training.losses import LOSSES
from psla_jax.training.optimizer import make_optimizer

State = dict[str, Any]
Batch = dict[str, jax.Array]


class TrainingError(RuntimeError):
    """Training cannot continue; the message has the step, its clips, and the remedy."""


def augment(frontend: Frontend, sampling: SamplingConfig, batch: Batch, key: jax.Array) -> jax.Array:
    """Returns masked, normalised spectrograms `(batch, frames, mels)`; every clip has a random key of its own."""
    mask_key, noise_key = jax.random.split(key)
    log_mel = frontend.log_mel(batch["waveform"], batch["num_samples"])
    keys = jax.random.split(mask_key, len(log_mel))
    masked = spec_augment(log_mel, keys, freq_mask=sampling.freq_mask, time_mask=sampling.time_mask)
    spectrograms = frontend.normalise(masked)
    return noise_and_roll(spectrograms, jax.random.split(noise_key, len(log_mel))) if sampling.noise else spectrograms


@dataclass(frozen=True)
class Trainer:
    """Model structure, optimizer and jitted step of one run. Build it with :func:`make_trainer`.

    `graphdef` is the structure of the model, and `backbone` the name of the backbone among the parameters, where it is
    frozen or has its own learning rate.
    """

    config: RunConfig
    frontend: Frontend
    graphdef: Any
    optimizer: optax.GradientTransformation
    placement: Placement
    backbone: str = ""
    steps_per_epoch: int = 1
    cache_programs: bool = False
    """Whether the traced step of a single device is cached on disk; only where no code of this package is replaced."""
    _compiled_step: list[Callable[..., Any]] = field(default_factory=list, repr=False)

    def init(self, model: nnx.Module) -> State:
        """Returns the state before the first step, on the devices."""
        params, batch_stats = split_model(model)
        opt = jax.jit(self.optimizer.init)(params)
        state = {"params": params, "batch_stats": batch_stats, "opt": opt, "progress": zero_progress()}
        # Copies, because the step donates its state and the model keeps its own arrays.
        return jax.device_put(jax.tree.map(np.array, state), self.placement.replicated)

    def step(self, state: State, batch: Batch, number: np.int32) -> tuple[State, dict[str, jax.Array]]:
        """Runs a training step on the state of :meth:`init` or of the previous step, whose memory is reused.

        `batch` has the device fields of a batch of :mod:`psla_jax.data.loader`, from :meth:`Placement.shard_batch`.
        `number` counts the steps from 0 over the whole run; random draws depend on it and on the seed. Returns the new
        state, and the metrics ``loss`` and ``gradient_norm`` (and the largest control code, if given).
        """
        arguments = state, batch, self.seed, number
        if not self._compiled_step:
            self._compiled_step.append(self._compile(*arguments))
            # Compiling takes more memory than a step, and both together would be the peak of the process.
            release_freed_memory()
        return self._compiled_step[0](*arguments)

    def _compile(self, *arguments: Any) -> Callable[..., Any]:
        """Returns the step after compiling it for such arguments."""
        if self.cache_programs:
            return self._compile_cached(*arguments)
        self.jitted_step.lower(*arguments).compile()  # The jitted function finds this program when it is called.
        return self.jitted_step

    def _compile_cached(self, state: State, batch: Batch, seed: np.uint32, number: np.int32) -> Callable[..., Any]:
        config = self.config
        sections = config.model, config.frontend, config.sampling, config.optimizer, config.pretraining
        return exported.compile_cached(
            self._step,
            (state, batch, seed, number),
            (state, dict.fromkeys(("loss", "gradient_norm"), 0)),
            ("train", *sections, self.steps_per_epoch),
            donate=1,
            out_shardings=self.placement.replicated,
            compiler_options=training_options(),
        )

    def lower(self, state: State, batch: Batch) -> jax.stages.Lowered:
        """Returns the lowered step for such a state and batch."""
        return self.jitted_step.lower(state, batch, self.seed, np.int32(0))

    @property
    def seed(self) -> np.uint32:
        """Seed of the run; an argument of the step, so that runs with different seeds share a compiled program."""
        return np.uint32(self.config.seed & 0xFFFFFFFF)

    @functools.cached_property
    def jitted_step(self) -> Any:
        """The jitted function ``(state, batch, seed, number) -> (state, metrics)``, which donates its state."""
        shardings, options = (self.placement.replicated,) * 2, training_options()
        return jax.jit(self._step, donate_argnums=0, out_shardings=shardings, compiler_options=options)

    def _step(
        self, state: State, batch: Batch, seed: jax.Array, number: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        control = {CONTROL: batch[CONTROL].max()} if CONTROL in batch else {}
        batch = {name: field for name, field in batch.items() if name != CONTROL}
        loss, batch_stats, gradients = self._gradients(state["params"], state["batch_stats"], batch, key)
        updates, opt = self.optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        count, progress = batch["valid"].sum(), state["progress"]
        progress = {**progress, "loss": progress["loss"] + loss * count, "count": progress["count"] + count}
        new = {"params": params, "batch_stats": batch_stats, "opt": opt, "progress": progress}
        norm = optax.tree.norm(gradients)
        if self.config.optimizer.nonfinite == "skip":
            new = _skip_unless(jnp.isfinite(loss) & jnp.isfinite(norm), new, state)
        return new, {"loss": loss, "gradient_norm": norm, **control}

    def _gradients(self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, Any]:
        """Returns loss, new batch statistics and gradients of a batch, computed in one piece or in microbatches."""
        parts = self.config.optimizer.accumulate
        total = jnp.maximum(batch["valid"].sum(), 1.0)
        if parts == 1:
            (loss, batch_stats), gradients = self._microbatch(params, batch_stats, batch, key, total)
            return loss, batch_stats, gradients

        def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
            loss, batch_stats, gradients = carry
            (part_loss, batch_stats), part_gradients = self._microbatch(params, batch_stats, part[0], part[1], total)
            return (loss + part_loss, batch_stats, jax.tree.map(jnp.add, gradients, part_gradients)), None

        # Row i goes to microbatch i % parts, so that every device keeps the rows that it has.
        split = {k: jnp.moveaxis(v.reshape(-1, parts, *v.shape[1:]), 1, 0) for k, v in batch.items()}
        zero = (jnp.zeros(()), batch_stats, jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, (split, jax.random.split(key, parts)))[0]

    def _microbatch(self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array, total: jax.Array):
        """Returns ``((loss, batch_stats), gradients)`` of a microbatch of a batch with `total` clips."""
        augment_key, drop_key = jax.random.split(key)
        spectrograms = augment(self.frontend, self.config.sampling, batch, augment_key)

        def loss_of(params: Any, batch_stats: Any) -> tuple[jax.Array, Any]:
            frozen = self.config.pretraining.freeze
            if frozen:
                params = {**params, self.backbone: jax.lax.stop_gradient(params[self.backbone])}
            model = nnx.merge(self.graphdef, params, batch_stats)
            model = views.train_view(model, frozen=frozen, remat=self.config.optimizer.remat)
            custom.attach_streams(model, drop_key)
            scores = views.apply(model, spectrograms, batch["valid"], nnx.Rngs(drop=drop_key))
            losses = LOSSES[self.config.optimizer.loss](scores, batch["labels"])
            # Padding rows are masked out of the loss.
            # Without a clip, as in the last microbatch of a short batch, there are no statistics to learn from.
            updated = jax.tree.map(
                lambda new, old: jnp.where(batch["valid"].any(), new, old), split_model(model)[1], batch_stats
            )
            return jnp.sum(jnp.where(batch["valid"] > 0, losses, 0.0)) / total, updated

        return jax.value_and_grad(loss_of, has_aux=True)(params, batch_stats)


def zero_progress() -> dict[str, jax.Array]:
    """Returns the progress of an epoch before its first step: sum of losses, clips, and skipped steps."""
    return {"loss": jnp.zeros(()), "count": jnp.zeros(()), "skipped": jnp.zeros(())}


def _skip_unless(finite: jax.Array, new: State, old: State) -> State:
    """Returns the new state if the step was finite, else the old one with one more step counted as skipped."""
    chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    skipped = old["progress"]["skipped"] + jnp.where(finite, 0.0, 1.0)
    return {**chosen, "progress": {**chosen["progress"], "skipped": skipped}}


def make_trainer(
    config: RunConfig, model: nnx.Module, steps_per_epoch: int, placement: Placement, *, cache_programs: bool = False
) -> Trainer:
    """Returns the trainer of a run on the devices of `placement`; `model` gives the structure, not the weights.

    With `cache_programs`, the traced step is cached in the user's cache directory, as ``psla train`` does, for built-in
    models on a single device. Do not use it where code of this package is replaced at run time.

    Raises:
        ConfigError: the model has no blocks to rematerialise.
        ModelError: the config treats the backbone separately, and the model has none.
    """
    if config.optimizer.remat and not can_rematerialise(model):
        raise ConfigError(
            f"optimizer.remat is True, but the blocks of {config.model.name} are not known: use jax.checkpoint in the "
            "model instead."
        )
    separate = config.pretraining.freeze or config.pretraining.backbone_rate != 1.0
    backbone = views.backbone_attribute(model) if separate else ""
    optimizer = make_optimizer(config.optimizer, config.pretraining, steps_per_epoch, backbone)
    frontend = Frontend.from_config(config.frontend)
    caching = cache_programs and exported.enabled() and placement.mesh.size == 1 and not config.model.custom_code
    return Trainer(config, frontend, nnx.graphdef(model), optimizer, placement, backbone, steps_per_epoch, caching)
