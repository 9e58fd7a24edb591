"""The training step of a run: built from its config and compiled for a mesh of devices."""

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

from psla_jax import ingredients
from psla_jax.audio.frontend import Frontend
from psla_jax.config import ConfigError, RunConfig, SamplingConfig, is_exclusive
from psla_jax.data.train_source import FIELD as WAVEFORM_FIELD
from psla_jax.models import views
from psla_jax.models.platforms import layers_for
from psla_jax.models.precision import products
from psla_jax.models.protocols import can_rematerialise
from psla_jax.models.state import split_model
from psla_jax.runtime import exported
from psla_jax.runtime.allocator import release_freed_memory
from psla_jax.runtime.sharding import CONTROL, Placement
from psla_jax.runtime.xla_options import training_options
from psla_jax.sampling.spectrogram import SPECTROGRAM_STEPS, Augment, Batch, compose
from psla_jax.sampling.waveform import WAVEFORM_STEPS
from psla_jax.training import losses
from psla_jax.training.distillation import agreement
from psla_jax.training.losses import Loss, binary_cross_entropy
from psla_jax.training.online_teacher import OnlineTeacher
from psla_jax.training.optimizer import make_optimizer, unmatched
from psla_jax.training.optimizer import require_usable as require_updates
from psla_jax.training.step import State, Step, init_state, make_train_step


def step_key(seed: jax.Array, number: jax.Array) -> jax.Array:
    """Returns the key of a training step by its number in the run."""
    return jax.random.fold_in(jax.random.key(seed), number)


def augmentation(sampling: SamplingConfig, frontend: Frontend) -> Augment:
    """Returns the augmentation of spectrograms of a config. Raises IngredientError for an unusable step."""
    with jax.ensure_compile_time_eval():  # A value, also while a step is traced that is traced again for other shapes.
        fill = frontend.normalise(jnp.zeros(()))
    settings = {"freq_mask": sampling.freq_mask, "time_mask": sampling.time_mask, "std": frontend.std}
    field = "sampling.spectrogram"
    steps = [
        ingredients.bound(ingredients.find(text, SPECTROGRAM_STEPS, field), 2, field=field, fill=fill, **settings)
        for text in (*sampling.spectrogram, *(["noise"] if sampling.noise else []))
    ]
    return compose(*steps)


def require_known(config: RunConfig) -> None:
    """Raises IngredientError if a name, an import path or an option cannot be found; needs no data and no model."""
    losses.from_config(config.optimizer)
    make_optimizer(config.optimizer, config.pretraining, 1, "")
    augmentation(config.sampling, Frontend())
    for text in config.sampling.waveform:
        ingredients.find(text, WAVEFORM_STEPS, WAVEFORM_FIELD)


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
    loss: Loss = binary_cross_entropy
    backbone: str = ""
    steps_per_epoch: int = 1
    teacher: OnlineTeacher | None = None
    cache_programs: bool = False
    """Whether the traced step of a single device is cached on disk; only where no code of this package is replaced."""
    _compiled_step: list[Callable[..., Any]] = field(default_factory=list, repr=False)

    def init(self, model: nnx.Module) -> State:
        """Returns the state before the first step, on the devices."""
        sharding = self.placement.replicated
        return init_state(model, self.optimizer, ema=self.config.optimizer.ema, sharding=sharding)

    def step(self, state: State, batch: Batch, number: np.int32) -> tuple[State, dict[str, jax.Array]]:
        """Runs a training step on the state of :meth:`init` or of the previous step, whose memory is reused.

        `batch` has the device fields of a batch of :mod:`psla_jax.data.loader`, from :meth:`Placement.shard_batch`.
        `number` counts the steps from 0 over the whole run; random draws depend on it and on the seed. Returns the new
        state, and the metrics ``loss`` and ``gradient_norm`` (and the largest control code, if given).
        """
        arguments = state, batch, self.seed, number, *self._teacher_weights
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
        sections = config.model, config.frontend, config.sampling, config.optimizer, config.pretraining, config.distill
        return exported.compile_cached(
            self._step,
            (state, batch, seed, number),
            (state, dict.fromkeys(("loss", "gradient_norm"), 0)),
            ("train", *sections, self.steps_per_epoch),
            donate=1,
            out_shardings=self.placement.replicated,
            compiler_options=training_options(self.placement.platform),
        )

    def lower(self, state: State, batch: Batch) -> jax.stages.Lowered:
        """Returns the lowered step for such a state and batch."""
        return self.jitted_step.lower(state, batch, self.seed, np.int32(0), *self._teacher_weights)

    @functools.cached_property
    def _teacher_weights(self) -> tuple[Any, ...]:
        """Weights of the teacher on all devices, further arguments of the step, which are not donated."""
        return () if self.teacher is None else (self.placement.replicate(self.teacher.weights),)

    @property
    def seed(self) -> np.uint32:
        """Seed of the run; an argument of the step, so that runs with different seeds share a compiled program."""
        return np.uint32(self.config.seed & 0xFFFFFFFF)

    @functools.cached_property
    def jitted_step(self) -> Any:
        """The jitted function ``(state, batch, seed, number) -> (state, metrics)``, which donates its state.

        With a teacher, its weights are the last argument.
        """
        shardings, options = (self.placement.replicated,) * 2, training_options(self.placement.platform)
        return jax.jit(self._step, donate_argnums=0, out_shardings=shardings, compiler_options=options)

    def _step(
        self, state: State, batch: Batch, seed: jax.Array, number: jax.Array, *teacher: Any
    ) -> tuple[State, dict[str, jax.Array]]:
        key = step_key(seed, number)
        control = {CONTROL: batch[CONTROL].max()} if CONTROL in batch else {}
        batch = {name: field for name, field in batch.items() if name != CONTROL}
        precision = self.config.optimizer.precision
        with layers_for(self.placement.platform, self.placement.mesh.size), products(precision):
            state, metrics = self._train_step(state, batch, key, *teacher)
        return state, {**metrics, **control}

    @functools.cached_property
    def _train_step(self) -> Step:
        optimizer, distill = self.config.optimizer, self.config.distill
        exclusive, teach = is_exclusive(optimizer.loss), None
        if self.teacher is not None:
            teach = functools.partial(self.teacher.targets, temperature=distill.temperature, exclusive=exclusive)
        return make_train_step(
            self.graphdef,
            self.optimizer,
            self.loss,
            augmentation(self.config.sampling, self.frontend),
            frontend=self.frontend,
            accumulate=optimizer.accumulate,
            frozen=self.backbone if self.config.pretraining.freeze else "",
            remat=optimizer.remat,
            local_statistics=self.config.model.batch_norm == "local",
            ema=optimizer.ema,
            skip_nonfinite=optimizer.nonfinite == "skip",
            teach=teach,
            consistency=agreement(distill, exclusive=exclusive),
        )


def make_trainer(
    config: RunConfig,
    model: nnx.Module,
    steps_per_epoch: int,
    placement: Placement,
    *,
    loss: Loss | None = None,
    teacher: OnlineTeacher | None = None,
    cache_programs: bool = False,
) -> Trainer:
    """Returns the trainer of a run on the devices of `placement`.

    Args:
        config: the settings.
        model: gives the structure, not the weights.
        steps_per_epoch: number of steps per epoch.
        placement: the devices.
        loss: the loss; by default that of the config, without class weights.
        teacher: scores every augmented batch in the step, for a loss that takes them.
        cache_programs: cache the traced step in the user's cache directory, as ``psla train`` does, for built-in
            ingredients on a single device. Do not use it where code of this package is replaced at run time.

    Raises:
        ConfigError, IngredientError: the optimizer, the loss or the augmentation cannot be used, or the model has no
            blocks to rematerialise or no batch normalisation with local statistics.
        ModelError: the config treats the backbone separately, and the model has none.
    """
    _require_supported(config, model)
    separate = config.pretraining.freeze or config.pretraining.backbone_rate != 1.0
    backbone = views.backbone_attribute(model) if separate else ""
    optimizer = make_optimizer(config.optimizer, config.pretraining, steps_per_epoch, backbone)
    params, _ = split_model(model)
    for name in ("no_decay", "rates"):
        if unused := unmatched(getattr(config.optimizer, name), params):
            raise ConfigError(f"optimizer.{name} has {unused[0]!r}, which matches no parameter: correct the pattern.")
    require_updates(optimizer, params, config.optimizer.name)
    caching = (
        cache_programs
        and exported.enabled()
        and list(placement.mesh.devices.flat) == jax.devices()[:1]
        and not config.optimizer.class_weights
        and teacher is None
        and not _has_imported_code(config)
    )
    return Trainer(
        config,
        Frontend.from_config(config.frontend),
        nnx.graphdef(model),
        optimizer,
        placement,
        loss or losses.from_config(config.optimizer),
        backbone,
        steps_per_epoch,
        teacher,
        caching,
    )


def _require_supported(config: RunConfig, model: nnx.Module) -> None:
    """Raises ConfigError if a setting has no effect on such a model."""
    if config.optimizer.remat and not can_rematerialise(model):
        raise ConfigError(
            f"optimizer.remat is True, but the blocks of {config.model.name} are not known: use jax.checkpoint in the "
            "model instead."
        )
    if config.model.batch_norm == "local" and not views.has_local_statistics(model):
        raise ConfigError(
            f"model.batch_norm is 'local', but {config.model.name} has no psla_jax.models.layers.BatchNorm: use "
            "synchronised."
        )


def _has_imported_code(config: RunConfig) -> bool:
    """Returns whether the step contains code from outside this package, whose changes would go unnoticed."""
    optimizer, sampling = config.optimizer, config.sampling
    texts = (optimizer.name, optimizer.schedule, optimizer.loss, *sampling.spectrogram)
    return bool(config.model.custom_code) or any(map(ingredients.is_imported, texts))


def require_usable(trainer: Trainer, num_classes: int) -> None:
    """Raises IngredientError unless augmentation and loss can be computed, before anything is compiled."""
    frames, mels = trainer.frontend.target_length, trainer.frontend.num_mels
    shapes = {"spectrogram": (2, frames, mels), "labels": (2, num_classes), "valid": (2,)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    field = f"sampling.spectrogram is {trainer.config.sampling.spectrogram}"
    try:
        augmented = jax.eval_shape(augmentation(trainer.config.sampling, trainer.frontend), batch, jax.random.key(0))
        result = {name: augmented[name].shape for name in shapes}
    except ingredients.IngredientError:
        raise
    except Exception as error:
        raise ingredients.IngredientError(
            f"{field}, which cannot be computed ({ingredients.reason(error)}): correct the step."
        ) from error
    kept = result["spectrogram"][1:2]  # A step may remove frames.
    expected = {**shapes, "spectrogram": (2, *kept, trainer.frontend.num_mels)}
    if wrong := [name for name in shapes if result[name] != expected[name]]:
        raise ingredients.IngredientError(
            f"{field}, which changes the shape of {wrong[0]} from {shapes[wrong[0]]} to {result[wrong[0]]}: a step may "
            "only change the number of frames."
        )
    if other := [name for name in shapes if augmented[name].dtype != jnp.float32]:
        dtype = augmented[other[0]].dtype
        raise ingredients.IngredientError(
            f"{field}, which changes the type of {other[0]} from float32 to {dtype}: return float32."
        )
    fields = {"valid": batch["valid"]}
    if trainer.config.distill.active:
        fields["teacher"] = batch["labels"]
    losses.require_usable(trainer.loss, num_classes, fields, str(trainer.config.optimizer.loss))
