"""Custom models: any NNX module from spectrograms to scores can be trained, evaluated and used for tagging."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models import views
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.layers import ModelError
from psla_jax.models.state import split_model


def build(name: str, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs | AbstractRngs) -> nnx.Module:
    """Returns the module that the callable ``module:callable`` builds, in its evaluation view.

    It is called with ``num_classes`` and ``rngs``, and with ``dtype`` if it has such a parameter. Random streams that
    the module stores, such as those of ``nnx.Dropout(rate, rngs=rngs)``, are detached (:func:`detach_streams`).

    Raises:
        ModelError: the callable cannot be imported or called, or it takes no ``dtype`` and `dtype` is not float32.
    """
    make = _import(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "rngs": rngs}
    if _takes_dtype(make):
        arguments["dtype"] = dtype
    elif jnp.dtype(dtype) != jnp.float32:
        raise ModelError(
            f"the custom model {name!r} takes no argument dtype, so it cannot compute in {jnp.dtype(dtype)}: add the "
            "argument, or use --optimizer.compute float32."
        )
    try:
        model = make(**arguments)
    except TypeError as error:
        raise ModelError(
            f"the model {name!r} cannot be built ({error}): it is called with {' and '.join(arguments)}."
        ) from error
    if not isinstance(model, nnx.Module):
        raise ModelError(f"the model {name!r} builds a {type(model).__name__}: return an nnx.Module.")
    detach_streams(model, name)
    return views.eval_view(model)


def _takes_dtype(make: Any) -> bool:
    """Returns whether a callable has a parameter ``dtype``; the signature of an NNX class is that of its metaclass."""
    make = getattr(make, "func", make)  # that of a functools.partial
    return "dtype" in inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters


def _import(name: str) -> Callable[..., nnx.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the model {name!r} cannot be imported ({error}): name it as module:callable.") from error


@dataclass(frozen=True)
class DetachedStream:
    """Replaces random streams that a module held: nnx.Rngs, or a single nnx.RngStream.

    In an evaluation, every draw has the same key, so that scores are deterministic.
    """

    single: bool

    def __call__(self) -> jax.Array:
        """Returns the key of every draw."""
        return jax.random.key(0)

    def __getattr__(self, name: str) -> DetachedStream:
        """Returns a stream by its name, as of nnx.Rngs."""
        if name.startswith("_"):
            raise AttributeError(name)
        return DetachedStream(single=True)

    def __getitem__(self, name: str) -> DetachedStream:
        return DetachedStream(single=True)


def detach_streams(model: nnx.Module, name: str) -> None:
    """Replaces the random streams that the modules of `model` have as attributes by marks, in place.

    A training step draws from its own key, so streams are no part of the state of a model. :func:`attach_streams` sets
    new ones in a training view. Raises ModelError, with the `name` of the model, if it has streams elsewhere.
    """
    for _, module in nnx.iter_modules(model):
        for attribute, value in list(vars(module).items()):
            if isinstance(value, nnx.Rngs | nnx.RngStream):
                setattr(module, attribute, nnx.static(DetachedStream(isinstance(value, nnx.RngStream))))
    if remaining := nnx.to_flat_state(nnx.state(model, nnx.RngState)):
        path = ".".join(map(str, remaining[0][0]))
        raise ModelError(f"the model {name!r} has a random stream at {path}: store it as an attribute of a module.")


def attach_streams(view: nnx.Module, key: jax.Array) -> None:
    """Sets random streams derived from `key` where :func:`detach_streams` removed them, in place."""
    marked = [
        (module, attribute, value)
        for _, module in nnx.iter_modules(view)
        for attribute, value in vars(module).items()
        if isinstance(value, DetachedStream)
    ]
    for number, (module, attribute, mark) in enumerate(marked):
        rngs = nnx.Rngs(jax.random.fold_in(key, number))
        setattr(module, attribute, nnx.data(rngs.default if mark.single else rngs))


def require_trainable(model: nnx.Module, name: str, num_classes: int, frames: int, mels: int = 128) -> None:
    """Raises ModelError if a training step cannot train the custom model `name`, or would train something else.

    Parameters and other variables must be float32 arrays and the same before and after a call, and a model maps
    spectrograms `(batch, frames, mels)` to scores `(batch, classes)` in [0, 1].
    """
    _require_float32(model, name)
    spectrograms = jnp.sin(jnp.arange(2.0 * frames * mels)).reshape(2, frames, mels)
    valid = jnp.ones(2)

    @jax.jit
    def evaluate(params: Any, batch_stats: Any) -> jax.Array:
        return nnx.merge(graphdef, params, batch_stats)(spectrograms)

    def train(params: Any, batch_stats: Any) -> Any:
        view = views.train_view(nnx.merge(graphdef, params, batch_stats))
        attach_streams(view, jax.random.key(0))
        views.apply(view, spectrograms, valid, nnx.Rngs(drop=0))
        return split_model(view)[1]

    graphdef, weights = nnx.graphdef(model), split_model(model)
    try:
        scores, after = evaluate(*weights), jax.eval_shape(train, *weights)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"the model {name!r} cannot be called with spectrograms of the shape {spectrograms.shape} "
            f"({type(error).__name__}: {reason:.200}): correct its __call__."
        ) from error
    if scores.shape != (2, num_classes):
        raise ModelError(
            f"the model {name!r} maps spectrograms of the shape {spectrograms.shape} to scores of the shape "
            f"{scores.shape}: return one score per class, (2, {num_classes})."
        )
    if not bool(jnp.all((scores >= 0) & (scores <= 1))):
        raise ModelError(
            f"the model {name!r} returns scores from {scores.min():.3g} to {scores.max():.3g}: return probabilities in "
            "[0, 1], for example by jax.nn.sigmoid."
        )
    if _layout(after) != _layout(weights[1]):
        raise ModelError(
            f"a call of the model {name!r} in training changes the number, shapes or types of its variables: create "
            "all of them in its constructor."
        )


def ignores_padding(model: nnx.Module) -> bool:
    """Returns whether rows without a clip change no result: the call takes ``valid``, or has no ``nnx.BatchNorm``."""
    takes_valid = "valid" in inspect.signature(type(model).__call__).parameters
    return takes_valid or not any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(model))


def _require_float32(model: nnx.Module, name: str) -> None:
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        dtype = variable[...].dtype
        if isinstance(variable, nnx.Param) and dtype != jnp.float32:
            raise ModelError(
                f"the parameter {'.'.join(map(str, path))} of the model {name!r} has the type {dtype}: parameters are "
                "trained in float32, so set param_dtype=jnp.float32, and compute in another type by dtype."
            )


def _layout(tree: Any) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
