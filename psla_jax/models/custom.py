"""Custom models: any NNX module from spectrograms to scores can be trained, evaluated and used for tagging."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax import ingredients
from psla_jax.models import views
from psla_jax.models.layers import ModelError
from psla_jax.models.protocols import Parts, parts
from psla_jax.models.state import split_model


def build(make: Callable[..., Any], name: str, dtype: DTypeLike, settings: Mapping[str, Any]) -> Any:
    """Returns the NNX module that a callable builds from those of `settings` and ``dtype`` that its parameters name.

    Raises:
        IngredientError: the callable requires a parameter that is not available.
        ModelError: it fails or builds something else, or it takes no ``dtype`` and `dtype` is not float32.
    """
    if not ingredients.accepts(make, "dtype") and jnp.dtype(dtype) != jnp.float32:
        raise ModelError(
            f"the custom model {name!r} takes no argument dtype, so it cannot compute in {jnp.dtype(dtype)}: add the "
            "argument, or use the precision tf32."
        )
    try:
        model = ingredients.call(make, field="model.name", dtype=dtype, **settings)
    except TypeError as error:
        raise ModelError(f"the model {name!r} cannot be built ({error}): correct its constructor.") from error
    if not isinstance(model, nnx.Module):
        raise ModelError(f"the model {name!r} builds a {type(model).__name__}: return an nnx.Module.")
    return model


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


def require_trainable(model: nnx.Module, name: str, num_classes: int, frames: int, mels: int) -> None:
    """Raises ModelError if a training step cannot train the custom model `name`, or would train something else.

    Parameters and other variables must be float32 arrays and the same before and after a call, and a model maps
    spectrograms `(batch, frames, mels)` to scores `(batch, classes)` in [0, 1]. Backbone and head are as
    :mod:`psla_jax.models.protocols` defines them.
    """
    _require_float32(model, name)
    spectrograms = jnp.sin(jnp.arange(2.0 * frames * mels)).reshape(2, frames, mels)
    valid, found = jnp.ones(2), parts(model)
    graphdef, weights = nnx.graphdef(model), split_model(model)

    @jax.jit
    def evaluate(params: Any, batch_stats: Any) -> jax.Array:
        return nnx.merge(graphdef, params, batch_stats)(spectrograms)

    def train(params: Any, batch_stats: Any) -> Any:
        view = views.train_view(nnx.merge(graphdef, params, batch_stats))
        attach_streams(view, jax.random.key(0))
        views.apply(view, spectrograms, valid, nnx.Rngs(drop=0))
        return split_model(view)[1]

    with _calling(name, spectrograms):
        features: Any = None if found is None else _features(graphdef, weights, spectrograms)
    if found is not None:
        _require_features(found, features, name, spectrograms)
    with _calling(name, spectrograms):
        scores, after = evaluate(*weights), jax.eval_shape(train, *weights)
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
    if found is not None:
        _require_head(found, features, scores, name)
    if _layout(after) != _layout(weights[1]):
        raise ModelError(
            f"a call of the model {name!r} in training changes the number, shapes or types of its variables: create "
            "all of them in its constructor."
        )


@contextlib.contextmanager
def _calling(name: str, spectrograms: jax.Array) -> Iterator[None]:
    """Converts exceptions of a model's own code to ModelError."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the model {name!r} cannot be called with spectrograms of the shape {spectrograms.shape} "
            f"({ingredients.reason(error):.200}): correct its __call__."
        ) from error


@functools.partial(jax.jit, static_argnums=0)
def _features(graphdef: Any, weights: Any, spectrograms: jax.Array) -> jax.Array:
    found = parts(nnx.merge(graphdef, *weights))
    assert found is not None
    return found.features(spectrograms)


def _require_features(found: Parts, features: Any, name: str, spectrograms: jax.Array) -> None:
    """Raises ModelError unless features have about one frame per stride, and the number of channels."""
    frames, channels = spectrograms.shape[1] / found.stride, found.backbone.num_features
    if features.ndim != 3 or features.shape[2] != channels or abs(features.shape[1] - frames) > 1:
        raise ModelError(
            f"the backbone of {name!r} maps spectrograms of the shape {spectrograms.shape} to features of the "
            f"shape {features.shape} instead of {(2, math.ceil(frames), channels)}: correct its attributes stride "
            f"({found.stride}, spectrogram frames per output frame) and num_features ({channels})."
        )


def _require_head(found: Parts, features: jax.Array, scores: jax.Array, name: str) -> None:
    """Raises ModelError unless the head gives the scores of the whole model, and frame scores of their classes."""
    difference = float(jnp.abs(found.scores(features) - scores).max())
    if not difference <= 1e-3:
        raise ModelError(
            f"the model {name!r} has a backbone and a head, but their scores differ from its own by {difference:.2g}: "
            "return head(backbone(spectrograms)), or rename the attribute backbone."
        )
    outputs = found.head.frame_outputs(features, None) if found.has_frames else ()
    shapes, expected = [field.shape for field in outputs if field is not None], (*features.shape[:2], scores.shape[1])
    if any(shape != expected for shape in shapes):
        raise ModelError(
            f"frame_outputs of the head of {name!r} returns arrays of the shapes {shapes}: return scores (and "
            f"attention) of every frame and class, {expected}."
        )


def ignores_padding(model: nnx.Module) -> bool:
    """Returns whether rows without a clip change no result: calls take ``valid``, or there is no ``nnx.BatchNorm``."""
    return all(ingredients.accepts(part, "valid") or not _has_flax_norm(part) for part in parts(model) or [model])


def _has_flax_norm(module: nnx.Module) -> bool:
    return any(isinstance(inner, nnx.BatchNorm) for _, inner in nnx.iter_modules(module))


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
