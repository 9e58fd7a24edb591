"""Initial weights of a training run: ImageNet, a weight file, or an existing model (fine-tuning)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax import ingredients
from psla_jax.config import FrontendConfig, ModelConfig, PretrainingConfig
from psla_jax.models.model_dir import Model, ModelCard, abstract_model, find_model, load_model, read_card
from psla_jax.models.protocols import Parts, parts
from psla_jax.pretraining import weight_file
from psla_jax.pretraining.imagenet import imagenet_file, load_backbone, load_imagenet
from psla_jax.pretraining.state_dict import PretrainingError, without_wrappers
from psla_jax.vocabulary.vocabulary import Vocabulary

IMAGENET = "imagenet"
BACKBONE_PREFIXES = ("effnet.", "model.")
"""Prefixes of the entries of the backbone in an official checkpoint."""


def start_from(
    model: nnx.Module,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
    frontend: FrontendConfig,
) -> str:
    """Loads the weights named by ``pretraining.source`` into a randomly initialised model, in place.

    Returns a description of the loaded and the new weights, for the log.

    Args:
        model: a model from ``build_model``.
        config: its architecture.
        pretraining: source of the weights (``imagenet``, a ``.pth`` file, or a model or run directory) and options.
        vocabulary: classes to train.
        frontend: spectrogram settings of the training.

    Raises:
        PretrainingError, CheckpointError: the weights are missing, unreadable, or of another architecture.
    """
    source, own = pretraining.source, parts(model)
    if source != IMAGENET and Path(source).is_dir() and own is not None:
        return _from_model(own, config, pretraining, vocabulary, frontend)
    if own is None or ingredients.is_imported(config.name):
        remedy = "omit it" if own is None else "name a model or run directory with this backbone, or omit it"
        raise PretrainingError(f"pretraining.source is {source!r}, but {config.name} has no such weights: {remedy}.")
    file = weight_file.read(imagenet_file(config.name) if source == IMAGENET else Path(source))
    return _from_file(own, config, pretraining, file)


def _from_file(model: Parts, config: ModelConfig, pretraining: PretrainingConfig, file: weight_file.WeightFile) -> str:
    """Loads the backbone from a file of ImageNet weights or an official checkpoint."""
    plain = {without_wrappers(name): value for name, value in file.arrays.items()}
    official = {name.split(".", 1)[1]: value for name, value in plain.items() if name.startswith(BACKBONE_PREFIXES)}
    if not official:
        report = load_imagenet(model.backbone, config.name, file, pretraining.stem)
        return (
            f"backbone from {file.path}: {len(report.loaded)} arrays loaded, {len(report.ignored)} ignored, stem "
            f"{pretraining.stem}; new head"
        )
    backbone = {name: value for name, value in official.items() if not name.startswith("classifier.")}
    load_backbone(model.backbone, backbone, str(file.path), config.name)
    return (
        f"backbone from {file.path}: {len(backbone)} entries; new head (to keep the weights of common classes, convert "
        "the file with psla convert)"
    )


def _from_model(
    model: Parts,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
    frontend: FrontendConfig,
) -> str:
    """Loads the whole backbone, and the head weights of the classes in common, from a model directory."""
    source = _load_source(config, pretraining.source)
    card, backbone = source.card, parts(source.network)
    if backbone is None:
        raise PretrainingError(f"{pretraining.source} is {card.model.name}, which has no backbone: use another source.")
    arrays = _copy_backbone(model, backbone, pretraining.source)
    head = _copy_classes(model, backbone, card, config, pretraining, vocabulary)
    description = f"whole backbone from {pretraining.source}: {arrays} arrays; {head}"
    return description + _frontend_note(card.frontend, frontend)


def _frontend_note(source: FrontendConfig, frontend: FrontendConfig) -> str:
    """Returns the settings of the frontend that a source was trained with, unlike this run; empty if there are none."""
    names = [f.name for f in dataclasses.fields(frontend) if f.name != "target_length"]
    before = {name: getattr(source, name) for name in names}
    differing = {name: value for name, value in before.items() if getattr(frontend, name) != value}
    if "mean" in differing or "std" in differing:  # One without the other would mislead.
        differing = {"mean": source.mean, "std": source.std} | differing
    listed = " and ".join(f"frontend.{name} {value}" for name, value in differing.items())
    return f"; it was trained with {listed}, unlike this run" if differing else ""


def _load_source(config: ModelConfig, source: str) -> Model:
    """Loads the model to start from, which has the backbone of `config` and no code that `config` does not name."""
    model = read_card(find_model(Path(source))).model
    if (model.name, model.padding) != (config.name, config.padding):
        raise PretrainingError(
            f"{source} is {model.name} with {model.padding} padding, but the model to train is {config.name} with "
            f"{config.padding} padding: use --model.name {model.name} --model.padding {model.padding}, or another "
            "source."
        )
    if unknown := sorted(set(model.custom_code) - set(config.custom_code)):
        raise PretrainingError(
            f"{source} has a head of custom code, {unknown[0]}, which this run does not name and so does not import: "
            f"use --model.pooling {unknown[0]}, or another source."
        )
    return load_model(source, trust=True)


def _copy_backbone(model: Parts, source: Parts, name: str) -> int:
    """Sets parameters and batch statistics of a backbone to those of another one; returns the number of arrays."""
    values = dict(nnx.to_flat_state(nnx.state(source.backbone, nnx.Not(nnx.RngState))))
    variables = dict(nnx.to_flat_state(nnx.state(model.backbone, nnx.Not(nnx.RngState))))
    shapes = [{path: variable.shape for path, variable in state.items()} for state in (values, variables)]
    if shapes[0] != shapes[1]:
        raise PretrainingError(f"the backbone of {name} has arrays of other names or shapes: use another source.")
    for path, variable in variables.items():
        value = values[path][...]
        if jnp.issubdtype(value.dtype, jnp.floating) and not bool(jnp.isfinite(value).all()):
            raise PretrainingError(f"{'.'.join(map(str, path))} of {name} is not finite: use another source.")
        variable.set_value(jnp.asarray(value, variable.dtype))
    return len(variables)


def _copy_classes(
    model: Parts,
    source: Parts,
    card: ModelCard,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
) -> str:
    """Copies the head weights of the classes that both models have, matched by mid; returns a description."""
    if pretraining.head == "new":
        return f"new head for all {len(vocabulary)} classes, as configured"
    axes, source_axes = _class_axes(config, len(vocabulary)), _class_axes(card.model, len(card.vocabulary))
    if card.model.pooling != config.pooling or axes != source_axes:
        return f"new head: the source has {card.model.pooling} pooling with {card.model.heads} heads"
    common = [index for index, mid in enumerate(vocabulary.mids) if mid in card.vocabulary]
    if not common:
        return f"new head: the source has none of the {len(vocabulary)} classes"
    source_rows = [card.vocabulary.index(vocabulary.mids[index]) for index in common]
    variables = dict(nnx.to_flat_state(nnx.state(model.head, nnx.Param)))
    for path, source_variable in nnx.to_flat_state(nnx.state(source.head, nnx.Param)):
        value, (axis, _) = np.asarray(source_variable[...]), axes[path]
        if axis is not None:
            mixed = np.moveaxis(np.array(variables[path][...]), axis, 0)
            mixed[common] = np.moveaxis(value, axis, 0)[source_rows]
            value = np.moveaxis(mixed, 0, axis)
        variables[path].set_value(jnp.asarray(value))
    new = [name for index, name in enumerate(vocabulary.names) if index not in set(common)]
    examples = f" ({', '.join(new[:5])}{', ...' if len(new) > 5 else ''})" if new else ""
    return f"head: {len(common)} of {len(vocabulary)} classes copied by mid, {len(new)} new{examples}"


def _class_axes(config: ModelConfig, num_classes: int) -> dict[Any, tuple[int | None, tuple[int, ...]]]:
    """Returns the axis of the classes of every parameter of a head, None if it has none, and its other axes.

    It is the axis that is one longer in the head of a model with one more class.
    """
    heads = (parts(abstract_model(config, number)) for number in (num_classes, num_classes + 1))
    one, two = (dict(nnx.to_flat_state(nnx.state(found.head, nnx.Param))) for found in heads if found is not None)
    return {path: _differing_axis(variable.shape, two[path].shape) for path, variable in one.items()}


def _differing_axis(shape: tuple[int, ...], longer: tuple[int, ...]) -> tuple[int | None, tuple[int, ...]]:
    axis = next((axis for axis, sizes in enumerate(zip(shape, longer)) if sizes[0] != sizes[1]), None)
    return axis, tuple(size for index, size in enumerate(shape) if index != axis)
