"""Initial weights of a training run: ImageNet, a weight file, or an existing model (fine-tuning)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.config import FrontendConfig, ModelConfig, PretrainingConfig
from psla_jax.models.model_dir import ModelCard, load_model
from psla_jax.models.pooling import Pooling
from psla_jax.models.psla import PSLAModel
from psla_jax.pretraining import torch_file
from psla_jax.pretraining.imagenet import imagenet_file, load_backbone, load_imagenet
from psla_jax.pretraining.state_dict import PretrainingError, to_state_dict, without_wrappers
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
    source = pretraining.source
    if not isinstance(model, PSLAModel):
        raise PretrainingError(f"pretraining.source is {source!r}, but {config.name} has no such weights: omit it.")
    if source != IMAGENET and Path(source).is_dir():
        return _from_model(model, config, pretraining, vocabulary, frontend)
    file = torch_file.read(imagenet_file(config.name) if source == IMAGENET else Path(source))
    return _from_file(model, config, pretraining, file)


def _from_file(
    model: PSLAModel, config: ModelConfig, pretraining: PretrainingConfig, file: torch_file.WeightFile
) -> str:
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
    model: PSLAModel,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
    frontend: FrontendConfig,
) -> str:
    """Loads the whole backbone, and the head weights of the classes in common, from a model directory."""
    source = load_model(pretraining.source)
    card = source.card
    name, padding = card.model.name, card.model.padding
    if not isinstance(source.network, PSLAModel) or (name, padding) != (config.name, config.padding):
        raise PretrainingError(
            f"{pretraining.source} is {name} with {padding} padding, but the model to train is {config.name} with "
            f"{config.padding} padding: use --model.name {name} --model.padding {padding}, or another source."
        )
    arrays = to_state_dict(source.network.backbone)
    load_backbone(model.backbone, arrays, pretraining.source, config.name)
    head = _copy_classes(model.head, source.network.head, card, config, pretraining, vocabulary)
    description = f"whole backbone from {pretraining.source}: {len(arrays)} arrays; {head}"
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


def _copy_classes(
    head: Pooling,
    source: Pooling,
    card: ModelCard,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
) -> str:
    """Copies the head weights of the classes that both models have, matched by mid; returns a description."""
    if pretraining.head == "new":
        return f"new head for all {len(vocabulary)} classes, as configured"
    if card.model.pooling != config.pooling or (card.model.pooling == "attention" and card.model.heads != config.heads):
        return f"new head: the source has {card.model.pooling} pooling with {card.model.heads} heads"
    common = [index for index, mid in enumerate(vocabulary.mids) if mid in card.vocabulary]
    if not common:
        return f"new head: the source has none of the {len(vocabulary)} classes"
    source_columns = [card.vocabulary.index(vocabulary.mids[index]) for index in common]
    variables = dict(nnx.to_flat_state(nnx.state(head, nnx.Param)))
    for path, source_variable in nnx.to_flat_state(nnx.state(source, nnx.Param)):
        value = np.asarray(source_variable[...])
        if path[-1] != "head_weight":
            mixed = np.array(variables[path][...])
            mixed[..., common] = value[..., source_columns]
            value = mixed
        variables[path].set_value(jnp.asarray(value))
    new = [name for index, name in enumerate(vocabulary.names) if index not in set(common)]
    examples = f" ({', '.join(new[:5])}{', ...' if len(new) > 5 else ''})" if new else ""
    return f"head: {len(common)} of {len(vocabulary)} classes copied by mid, {len(new)} new{examples}"
