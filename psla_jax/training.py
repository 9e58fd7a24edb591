"""The training step: frontend, SpecAugment, model, loss and optimizer in one jitted function over a mesh of devices.

The state is a dictionary of plain trees: ``params`` and ``rest`` (batch statistics) of the model, ``opt`` of the
optimizer, ``progress`` (sums behind the epoch's mean loss). It is replicated; batches are split over the devices, and
batch statistics come out global.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from psla_jax import processes
from psla_jax.compiler import training_options
from psla_jax.config import ConfigError, OptimizerConfig, RunConfig, SamplingConfig
from psla_jax.frontend import Frontend
from psla_jax.kept_programs import Program
from psla_jax.models import tagger
from psla_jax.sampling.specaugment import noise_and_roll, spec_augment

State = dict[str, Any]
WISH = "wish"
"""Field of a batch, of every process: whether it has to stop, or wants to save. The step tells all of them."""
DEVICE_FIELDS = ("waveform", "num_samples", "labels", "valid", WISH)
"""The fields of a batch that the step needs; the others name clips and stay on the host."""
METRICS = ("loss", "gradient_norm")
EPSILON = 1e-7


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, with which clips, and what to do."""


@dataclass(frozen=True)
class Placement:
    """Where state and batches live: all devices in one row, the batch split over them."""

    mesh: Mesh

    @classmethod
    def over(cls, devices: Sequence[jax.Device]) -> Placement:
        """A mesh of these devices."""
        return cls(jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices))

    @classmethod
    def over_all_devices(cls) -> Placement:
        """A mesh of every device JAX sees."""
        return cls.over(jax.devices())

    @property
    def replicated(self) -> NamedSharding:
        """For state: a copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """For batches: rows divided among the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The device fields of a batch, split over the devices; of several processes each has its own rows."""
        fields = {k: batch[k] for k in DEVICE_FIELDS if k in batch}
        if processes.count() == 1:
            return jax.device_put(fields, self.split)
        return {k: jax.make_array_from_process_local_data(self.split, v) for k, v in fields.items()}

    def replicate(self, tree: Any) -> Any:
        """Arrays that every process has, as a copy on every device."""
        return jax.device_put(tree, self.replicated)

    def rows(self, batch_size: int) -> range:
        """Which rows of a batch are this process's."""
        parts = self.split.addressable_devices_indices_map((batch_size,)).values()
        rows = sorted(row for part in parts if part is not None for row in range(batch_size)[part[0]])
        assert rows == list(range(rows[0], rows[-1] + 1)), "the mesh lays the devices of a process side by side"
        return range(rows[0], rows[-1] + 1)

    def check_batch(self, batch_size: int, accumulate: int = 1) -> None:
        """Raises ConfigError if the devices do not divide a (micro)batch."""
        devices = self.mesh.size
        if batch_size // accumulate % devices:
            wanted = max(batch_size // (devices * accumulate), 1) * devices * accumulate
            micro = f" in {accumulate} microbatches (optimizer.accumulate)" if accumulate > 1 else ""
            raise ConfigError(
                f"data.batch_size is {batch_size}{micro}, which {devices} devices do not divide: use {wanted}, for one."
            )


def learning_rate(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up to the peak, and a decay after epoch `decay_start` and every `decay_every` epochs from there on.

    The reference holds the rate for 50 steps at a time while it warms up, the first 50 at zero; here it always rises.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        decays = jnp.maximum((epoch - config.decay_start) // config.decay_every + 1, 0)
        rate = config.learning_rate * jnp.power(config.decay, decays.astype(jnp.float32))
        # Divided last: XLA repeats cheaper operations in the program of every parameter's update.
        return rate / jnp.maximum(max(config.warmup_steps, 1) / (step + 1.0), 1.0)

    return schedule


def optimizer(config: OptimizerConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """PyTorch's Adam with ``weight_decay``, over all parameters as one vector.

    L2 is added to the gradient before the moments, not decoupled from them.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_adam(b1=0.95, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate(config, steps_per_epoch)),
    )


def binary_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the classes, `(batch,)`; scores are clamped to [1e-7, 1 - 1e-7] as in the reference."""
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    return -jnp.mean(labels * jnp.log(scores) + (1.0 - labels) * jnp.log1p(-scores), axis=1)


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """For single-label sets, `(batch,)`: scores normalised over the classes, against the (mixed) label distribution.

    The reference takes the argmax of the labels, which forgets the partner of a mixture.
    """
    scores = jnp.clip(scores, EPSILON, None)
    return -jnp.sum(labels * jnp.log(scores / jnp.sum(scores, axis=1, keepdims=True)), axis=1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "auto": binary_cross_entropy,  # where no datafile was asked; a run has settled it before
    "bce": binary_cross_entropy,
    "ce": cross_entropy,
}


def augment(frontend: Frontend, sampling: SamplingConfig, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Waveforms to masked, normalised spectrograms `(batch, frames, mels)`; every clip draws from a key of its own."""
    mask_key, noise_key = jax.random.split(key)
    log_mel = frontend.log_mel(batch["waveform"], batch["num_samples"])
    clips = log_mel.shape[0]
    masked = spec_augment(
        log_mel, jax.random.split(mask_key, clips), freq_mask=sampling.freq_mask, time_mask=sampling.time_mask
    )
    spectrograms = frontend.normalise(masked)
    return noise_and_roll(spectrograms, jax.random.split(noise_key, clips)) if sampling.noise else spectrograms


@dataclass(frozen=True)
class Trainer:
    """One run's model, optimizer and jitted step. Build it with :func:`make_trainer`."""

    config: RunConfig
    frontend: Frontend
    graphdef: Any
    transform: optax.GradientTransformation
    placement: Placement
    steps_per_epoch: int
    shapes: Any
    """Of the parameters."""
    backbone: str = ""
    """Name of the backbone among the parameters, where it is frozen or learns at a rate of its own."""

    def init(self, model: nnx.Module) -> State:
        """The state before the first step, on the devices."""
        params, rest = split_model(model)
        opt = self.transform.init(np.zeros(sum(self._sizes), np.float32))
        state = {"params": params, "rest": rest, "opt": opt, "progress": no_progress()}
        # Copies: the step donates its state, and the model keeps its own arrays.
        return jax.device_put(jax.tree.map(np.array, state), self.placement.replicated)

    def prepare(self, model: nnx.Module, classes: int) -> None:
        """Compiles the step, or loads it, in a thread: the first step waits only for what is left of that.

        Of the model nothing but its shapes is used: it may still be without weights.
        """
        params, rest = split_model(model)
        opt = jax.eval_shape(self.transform.init, jax.ShapeDtypeStruct((sum(self._sizes),), jnp.float32))
        state = {"params": params, "rest": rest, "opt": opt, "progress": no_progress()}
        clips = self.config.data.batch_size
        batch = {
            "waveform": jax.ShapeDtypeStruct((clips, self.frontend.num_samples), jnp.float32),
            "num_samples": jax.ShapeDtypeStruct((clips,), jnp.int32),
            "labels": jax.ShapeDtypeStruct((clips, classes), jnp.float32),
            "valid": jax.ShapeDtypeStruct((clips,), jnp.float32),
        }
        if processes.count() > 1:
            batch[WISH] = jax.ShapeDtypeStruct((clips,), jnp.int32)
        place = self.placement
        state, batch = placed(state, place.replicated), placed(batch, place.split)
        self.program.prepare(state, batch, self.seed, np.int32(0), self.starts)

    def step(self, state: State, batch: dict[str, jax.Array], number: np.int32) -> tuple[State, dict[str, jax.Array]]:
        """State and metrics after one more step; takes the memory of the given state. `number` is of the whole run."""
        return self.program(state, batch, self.seed, number, self.starts)

    def lowered(self, state: State, batch: dict[str, jax.Array]) -> jax.stages.Lowered:
        """The step for such a state and batch, ready to be compiled."""
        return self.program.lower(state, batch, self.seed, np.int32(0), self.starts)

    @property
    def seed(self) -> np.uint32:
        """As the step takes it: a number that is not part of the program, so that all seeds share one."""
        return np.uint32(self.config.seed & 0xFFFFFFFF)

    @functools.cached_property
    def starts(self) -> list[jax.Array]:
        """Where each trained parameter starts in the vector of all of them, on the devices.

        Arguments of the step, not numbers in it: XLA then compiles one slice for all parameters of a shape (78 in B2)
        instead of one for each (316).
        """
        return self.placement.replicate([np.int32(n) for n in np.cumsum([0, *self._sizes[:-1]])])

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(leaf.shape) for leaf in jax.tree.leaves(self._trained(self.shapes))]

    @functools.cached_property
    def program(self) -> Program:
        """``(state, batch, seed, number, starts) -> (state, metrics)``; donates the state."""
        config = self.config
        decides = [config.model, config.frontend, config.sampling, config.optimizer, config.pretraining]
        own = ":" in config.model.name  # Of somebody's own code nothing is known but that it may change.
        return Program(
            self._step,
            result=lambda state, batch, *_: (state, dict.fromkeys(METRICS + ((WISH,) if WISH in batch else ()), 0)),
            identity=None if own else {"step": [repr(x) for x in decides], "epoch": self.steps_per_epoch},
            donate_argnums=0,
            out_shardings=(self.placement.replicated, self.placement.replicated),
            compiler_options=training_options(),
        )

    def _step(
        self, state: State, batch: dict[str, jax.Array], seed: jax.Array, number: jax.Array, starts: list[jax.Array]
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        told = {WISH: batch[WISH].max()} if WISH in batch else {}
        batch = {name: field for name, field in batch.items() if name != WISH}
        loss, rest, gradients = self._gradients(state["params"], state["rest"], batch, key)
        # One vector for all parameters: hundreds of small updates would each be compiled, and started, by itself.
        trained = self._trained(state["params"])
        flat, _ = ravel_pytree(trained)
        gradient, _ = ravel_pytree(self._trained(gradients))
        updates, opt = self.transform.update(gradient, state["opt"], flat)
        flat = flat + self._rates(updates, state["params"]) * updates
        params = self._merged(_unraveled(flat, trained, starts), state["params"])
        count, before = batch["valid"].sum(), state["progress"]
        progress = {**before, "loss": before["loss"] + loss * count, "count": before["count"] + count}
        new = {"params": params, "rest": rest, "opt": opt, "progress": progress}
        norm = jnp.linalg.norm(gradient)
        if self.config.optimizer.nonfinite == "skip":
            new = _unless(jnp.isfinite(loss) & jnp.isfinite(norm), new, state)
        return new, {"loss": loss, "gradient_norm": norm, **told}

    def _trained(self, params: Any) -> Any:
        """What the optimizer sees of a tree of parameters: the backbone first where it has a rate of its own."""
        if not self.backbone:
            return params
        # Flattening sorts by name: _rates counts on the backbone coming first.
        head = {name: part for name, part in params.items() if name != self.backbone}
        return (
            {"2 head": head}
            if self.config.pretraining.freeze
            else {"1 backbone": params[self.backbone], "2 head": head}
        )

    def _merged(self, trained: Any, params: Any) -> Any:
        """The whole tree again; what is not trained comes from `params`."""
        if not self.backbone:
            return trained
        return {self.backbone: trained.get("1 backbone", params[self.backbone]), **trained["2 head"]}

    def _rates(self, updates: jax.Array, params: Any) -> jax.Array | float:
        """Factor of each parameter's update."""
        if not self.backbone or self.config.pretraining.freeze:
            return 1.0
        size = sum(leaf.size for leaf in jax.tree.leaves(params[self.backbone]))
        return jnp.where(jnp.arange(updates.size) < size, self.config.pretraining.backbone_rate, 1.0)

    def _gradients(self, params: Any, rest: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, Any]:
        """Loss, new batch statistics and gradient of a batch, in one piece or in microbatches."""
        parts = self.config.optimizer.accumulate
        total = jnp.maximum(batch["valid"].sum(), 1.0)
        if parts == 1:
            (loss, rest), gradients = self._part(params, rest, batch, key, total)
            return loss, rest, gradients

        def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
            loss, rest, gradients = carry
            (part_loss, rest), part_gradients = self._part(params, rest, part[0], part[1], total)
            return (loss + part_loss, rest, jax.tree.map(jnp.add, gradients, part_gradients)), None

        # Row i goes to part i % parts, so that every device keeps the rows it has.
        split = {k: jnp.moveaxis(v.reshape(-1, parts, *v.shape[1:]), 1, 0) for k, v in batch.items()}
        zero = (jnp.zeros(()), rest, jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, (split, jax.random.split(key, parts)))[0]

    def _part(self, params: Any, rest: Any, batch: dict[str, jax.Array], key: jax.Array, total: jax.Array):
        """Loss (with the new statistics) and gradient of a microbatch, as its share of `total` clips."""
        augment_key, drop_key = jax.random.split(key)
        spectrograms = augment(self.frontend, self.config.sampling, batch, augment_key)

        def loss_of(params: Any, rest: Any) -> tuple[jax.Array, Any]:
            frozen = self.config.pretraining.freeze
            if frozen:  # No gradient is wanted of it, so none is computed.
                params = {**params, self.backbone: jax.lax.stop_gradient(params[self.backbone])}
            model = tagger.train_view(
                nnx.merge(self.graphdef, params, rest), frozen=frozen, remat=self.config.optimizer.remat
            )
            scores = tagger.apply(model, spectrograms, batch["valid"], nnx.Rngs(drop=drop_key))
            losses = LOSSES[self.config.optimizer.loss](scores, batch["labels"])
            # What a row without a clip scores counts for nothing.
            return jnp.sum(jnp.where(batch["valid"] > 0, losses, 0.0)) / total, split_model(model)[1]

        return jax.value_and_grad(loss_of, has_aux=True)(params, rest)


def split_model(model: nnx.Module) -> tuple[dict, dict]:
    """A model's parameters, and its other variables (batch statistics), as plain nested dictionaries of arrays."""
    params, rest = nnx.state(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes and types of a tree's leaves, as of arrays that lie so."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def no_progress() -> dict[str, jax.Array]:
    """The sums behind an epoch's mean loss, and the number of steps skipped in it, before its first step."""
    return {"loss": jnp.zeros(()), "count": jnp.zeros(()), "skipped": jnp.zeros(())}


def _unraveled(vector: jax.Array, like: Any, starts: Sequence[jax.Array]) -> Any:
    """A tree like the one that the vector was made of by ``ravel_pytree``; its leaves begin at `starts`."""
    leaves, tree = jax.tree.flatten(like)
    parts = (
        jax.lax.dynamic_slice(vector, (start,), (leaf.size,), allow_negative_indices=False)
        for start, leaf in zip(starts, leaves, strict=True)
    )
    return jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


def _unless(finite: jax.Array, new: State, old: State) -> State:
    """The new state if the step was `finite`, else the old one, with one more step counted as skipped."""
    chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    skipped = old["progress"]["skipped"] + jnp.where(finite, 0.0, 1.0)
    return {**chosen, "progress": {**chosen["progress"], "skipped": skipped}}


def make_trainer(config: RunConfig, model: nnx.Module, steps_per_epoch: int, placement: Placement) -> Trainer:
    """The trainer of a run.

    Raises:
        ConfigError: if the devices do not divide the batch, or the model has no blocks to compute again.
        ModelError: if the backbone is to be treated apart, and the model has none.
    """
    placement.check_batch(config.data.batch_size, config.optimizer.accumulate)
    graphdef = nnx.graphdef(model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), split_model(model)[0])
    transform = optimizer(config.optimizer, steps_per_epoch)
    if config.optimizer.remat and not isinstance(model, tagger.AudioTagger):
        raise ConfigError(
            f"optimizer.remat is True, but the blocks of {config.model.name} are not known: leave it out, or use "
            "jax.checkpoint in the model."
        )
    apart = config.pretraining.freeze or config.pretraining.backbone_rate != 1.0
    backbone = tagger.backbone_attribute(model) if apart else ""
    return Trainer(
        config, Frontend.from_config(config.frontend), graphdef, transform, placement, steps_per_epoch, shapes, backbone
    )
