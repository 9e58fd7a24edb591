"""Optimizers and learning-rate schedules.

A schedule is made by a function that takes any of these parameters by name, and returns an ``optax.Schedule``:
``learning_rate``, ``epochs``, ``warmup_steps``, ``decay_start``, ``decay_every`` and ``decay`` of the config's section
``optimizer``, ``steps_per_epoch``, and ``steps``, the number of steps of the whole run. A function that makes an
optimizer takes any of ``learning_rate``, which is the schedule, ``weight_decay``, ``mask`` (a function from a tree of
parameters to a tree that is True where weights decay; given if some do not), ``steps_per_epoch`` and ``steps``. All
other parameters are options, as in ``adamw(b2=0.98)``. Optimizers and schedules of optax can be named directly, such as
``optax:adamw(nesterov=True)``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psla_jax import ingredients
from psla_jax.config import OptimizerConfig, PretrainingConfig
from psla_jax.ingredients import Ingredient

BACKBONE, HEAD = "backbone", "head"
"""Parameter groups of a model whose backbone is frozen or has a learning rate of its own."""
_SCHEDULE_FIELDS = ("learning_rate", "epochs", "warmup_steps", "decay_start", "decay_every", "decay")
Mask = Callable[[Any], Any] | None


def _warmed_up(rate: jax.Array | float, step: jax.Array | int, warmup_steps: int) -> jax.Array:
    return rate / jnp.maximum(max(warmup_steps, 1) / (step + 1.0), 1.0)


def _after_warm_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Returns a schedule that begins after a linear warm-up to its first rate."""
    return lambda step: _warmed_up(schedule(jnp.maximum(jnp.asarray(step) - warmup_steps, 0)), step, warmup_steps)


def step_decay(
    learning_rate: float, steps_per_epoch: int, warmup_steps: int, decay_start: int, decay_every: int, decay: float
) -> optax.Schedule:
    """Returns PSLA's schedule: linear warm-up, then a decay after epoch `decay_start` and every `decay_every` epochs.

    The reference keeps the rate constant for 50 steps at a time during warm-up, zero for the first 50; here it rises
    with every step.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        decays = jnp.maximum((epoch - decay_start) // decay_every + 1, 0)
        rate = learning_rate * jnp.power(decay, decays.astype(jnp.float32))
        return _warmed_up(rate, step, warmup_steps)

    return schedule


def cosine(learning_rate: float, steps: int, warmup_steps: int, *, final: float = 0.0) -> optax.Schedule:
    """Returns half a cosine from the learning rate, after the warm-up, to `final` times it at the end of the run."""
    schedule = optax.cosine_decay_schedule(learning_rate, max(steps - warmup_steps, 1), final)
    return _after_warm_up(schedule, warmup_steps)


def constant(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Returns the learning rate, after the warm-up."""
    return _after_warm_up(optax.constant_schedule(learning_rate), warmup_steps)


def exponential(learning_rate: float, steps: int, warmup_steps: int, *, final: float = 0.01) -> optax.Schedule:
    """Returns an exponential decay from the learning rate, after the warm-up, to `final` times it at the end."""
    length = max(steps - warmup_steps, 1)
    schedule = optax.exponential_decay(learning_rate, length, final, end_value=learning_rate * final)
    return _after_warm_up(schedule, warmup_steps)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "step_decay": step_decay,
    "cosine": cosine,
    "constant": constant,
    "exponential": exponential,
}
"""Functions that make schedules, by their names in a config."""


def adam(
    learning_rate: optax.Schedule,
    weight_decay: float,
    mask: Mask = None,
    *,
    b1: float = 0.95,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns PyTorch's Adam with ``weight_decay``: L2 is added to the gradient before the moments, not decoupled."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def sgd(
    learning_rate: optax.Schedule,
    weight_decay: float,
    mask: Mask = None,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Returns PyTorch's SGD with momentum and ``weight_decay``."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate, momentum, nesterov=nesterov)
    )


def muon(
    learning_rate: optax.Schedule, weight_decay: float, mask: Mask = None, **options: Any
) -> optax.GradientTransformation:
    """Returns Muon for the kernels of full and 1x1 convolutions and linear layers, and NAdam for all other parameters.

    A kernel ``(height, width, channels, features)`` is a matrix of features over all others; depthwise kernels, with
    one channel, are not matrices. Only matrices decay. `options` are those of ``optax.contrib.muon``.
    """

    def dimensions(params: Any) -> Any:
        return jax.tree.map(_matrix, params)

    return optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=dimensions,
        **options,
    )


def _matrix(parameter: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    is_matrix = parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2] > 1)
    if not is_matrix:
        return None
    last = parameter.ndim - 1
    return optax.contrib.MuonDimensionNumbers(reduction_axis=tuple(range(last)), output_axis=(last,))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": optax.adamw,
    "lamb": optax.lamb,
    "lion": optax.lion,
    "muon": muon,
    "sgd": sgd,
}
"""Functions that make optimizers, by their names in a config."""


def make_schedule(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the schedule of a run. Raises IngredientError if it cannot be made or computed."""
    settings = {name: getattr(config, name) for name in _SCHEDULE_FIELDS}
    schedule = _make(config.schedule, SCHEDULES, "optimizer.schedule", **settings, **_lengths(config, steps_per_epoch))
    try:
        rate = jax.eval_shape(lambda step: jnp.asarray(schedule(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ingredients.IngredientError(
            f"optimizer.schedule is {config.schedule!r}, whose result cannot be computed "
            f"({ingredients.reason(error)}): return a function of the step."
        ) from error
    if rate.shape:
        raise ingredients.IngredientError(
            f"optimizer.schedule is {config.schedule!r}, which gives rates of the shape {rate.shape}: give one number."
        )
    return schedule


def same_rates(one: OptimizerConfig, other: OptimizerConfig, steps_per_epoch: int) -> bool:
    """Returns whether the schedules of two configs agree in every epoch that both have: at its first and last step."""
    starts = np.arange(min(one.epochs, other.epochs)) * steps_per_epoch
    steps = np.concatenate([starts, starts + steps_per_epoch - 1])
    rates = [jax.vmap(make_schedule(config, steps_per_epoch))(steps) for config in (one, other)]
    return bool(jnp.array_equal(*rates))


def _lengths(config: OptimizerConfig, steps_per_epoch: int) -> dict[str, int]:
    return {"steps_per_epoch": steps_per_epoch, "steps": config.epochs * steps_per_epoch}


def _make(text: Ingredient, registry: Any, field: str, **available: Any) -> Any:
    function = ingredients.find(text, registry, field)
    try:
        return ingredients.call(function, field=field, **available)
    except (TypeError, ValueError) as error:
        if isinstance(error, ingredients.IngredientError):
            raise
        raise ingredients.IngredientError(
            f"{field} is {text!r}, which cannot be made ({ingredients.reason(error)}): correct its options."
        ) from error


def make_optimizer(
    config: OptimizerConfig, pretraining: PretrainingConfig, steps_per_epoch: int, backbone: str
) -> optax.GradientTransformation:
    """Returns the optimizer of a run, for a tree of parameters.

    `backbone` is the top-level name of the backbone's parameters where `pretraining` freezes it or gives it a learning
    rate of its own, and empty otherwise. Raises IngredientError if the optimizer or its schedule cannot be made.
    """
    settings: dict[str, Any] = {
        "learning_rate": make_schedule(config, steps_per_epoch),
        "weight_decay": config.weight_decay,
        **_lengths(config, steps_per_epoch),
    }
    if config.no_decay:
        settings["mask"] = lambda params: _by_name(params, lambda name: not _matches(name, config.no_decay))
    transform = _make(config.name, OPTIMIZERS, "optimizer.name", **settings)
    if not hasattr(transform, "update"):
        raise ingredients.IngredientError(
            f"optimizer.name is {config.name!r}, which returns a {type(transform).__name__}: return an "
            "optax.GradientTransformation."
        )
    if config.rates:
        transform = optax.chain(transform, scale_by_name(config.rates))
    if backbone:
        transform = _separate(transform, pretraining, backbone)
    return optax.chain(optax.clip_by_global_norm(config.clip), transform) if config.clip else transform


def _separate(
    transform: optax.GradientTransformation, pretraining: PretrainingConfig, backbone: str
) -> optax.GradientTransformation:
    """Returns an optimizer that freezes the backbone, or scales its updates."""
    scaled = optax.chain(transform, optax.scale(pretraining.backbone_rate))
    of_backbone = optax.set_to_zero() if pretraining.freeze else scaled

    def groups(params: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map_with_path(lambda path, _: BACKBONE if path[0].key == backbone else HEAD, params)

    return optax.multi_transform({BACKBONE: of_backbone, HEAD: transform}, groups)


def scale_by_name(rates: tuple[str, ...]) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates by factors, given as pattern=factor; the first match counts."""
    pairs = [rate.rpartition("=")[::2] for rate in rates]

    def factor(name: str) -> float:
        return next((float(value) for pattern, value in pairs if _matches(name, (pattern,))), 1.0)

    def scale(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda update, by: update * by, updates, _by_name(updates, factor))

    return optax.stateless(scale)


def unmatched(patterns: tuple[str, ...], params: Any) -> list[str]:
    """Returns those of the patterns (or pattern=factor) that match no parameter of a tree."""
    names = jax.tree.leaves(_by_name(params, lambda name: name))
    plain = [pattern.rpartition("=")[0] or pattern for pattern in patterns]
    return [pattern for pattern in plain if not any(_matches(name, (pattern,)) for name in names)]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _by_name(tree: Any, function: Callable[[str], Any]) -> Any:
    """Returns the tree of the function's values at the dotted name of every leaf, such as ``effnet._blocks.0.bias``."""
    return jax.tree.map_with_path(
        lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator=".")), tree
    )


def require_usable(transform: optax.GradientTransformation, params: Any, name: Ingredient) -> None:
    """Raises IngredientError unless an optimizer maps gradients of parameters to updates of the same shapes."""

    def update(params: Any) -> Any:
        return optax.apply_updates(params, transform.update(params, transform.init(params), params)[0])

    try:
        updated = jax.eval_shape(update, params)
    except Exception as error:
        raise ingredients.IngredientError(
            f"optimizer.name is {name!r}, whose updates cannot be computed ({ingredients.reason(error)}): use a "
            "transformation that needs gradients and parameters only."
        ) from error
    before, after = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (params, updated))
    if before != after:
        raise ingredients.IngredientError(
            f"optimizer.name is {name!r}, whose updates change shapes or types of parameters: correct it."
        )
