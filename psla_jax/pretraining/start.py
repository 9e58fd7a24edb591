"""What a training starts from: ImageNet, a file of weights, or any model (fine-tuning)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.checkpoints import ModelCard, load_model
from psla_jax.config import FrontendConfig, ModelConfig, PretrainingConfig
from psla_jax.models.pooling import Pooling
from psla_jax.models.tagger import AudioTagger
from psla_jax.ontology import Vocabulary
from psla_jax.pretraining import pth
from psla_jax.pretraining.imagenet import imagenet_file, load_backbone, require_backbone
from psla_jax.pretraining.names import PREFIX, PretrainingError, load_state_dict, to_state_dict

IMAGENET = "imagenet"
BACKBONE = ("effnet.", "model.")
"""Prefixes of a backbone's entries in an official checkpoint."""


def start_from(
    model: nnx.Module,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
    frontend: FrontendConfig,
) -> str:
    """Fills a fresh model with what ``pretraining.source`` names, in place.

    Args:
        model: from ``build_model``.
        config: its architecture.
        pretraining: where the weights come from: ``imagenet``, a ``.pth`` file, or a model or run directory.
        vocabulary: the classes to train.
        frontend: the features to train on.

    Returns:
        What was taken over and what was not, for the log.

    Raises:
        PretrainingError, CheckpointError: the weights are not there, cannot be read, or are of another architecture.
    """
    if not isinstance(model, AudioTagger):
        raise PretrainingError(
            f"pretraining.source is {pretraining.source!r}, but {config.name} has no such weights: leave it out."
        )
    path = Path(pretraining.source)
    if pretraining.source != IMAGENET and path.is_dir():
        return _from_model(model, config, pretraining, vocabulary, frontend)
    file = pth.read(imagenet_file(config.name) if pretraining.source == IMAGENET else path)
    return _from_file(model, config, pretraining, file)


def _from_file(model: AudioTagger, config: ModelConfig, pretraining: PretrainingConfig, file: pth.WeightFile) -> str:
    plain = {name.removeprefix(PREFIX): value for name, value in file.arrays.items()}
    official = {name.split(".", 1)[1]: value for name, value in plain.items() if name.startswith(BACKBONE)}
    if not official:
        report = load_backbone(model.backbone, config.name, file, pretraining.stem)
        return (
            f"backbone from {file.path}: {len(report.loaded)} arrays loaded, {len(report.ignored)} ignored, stem "
            f"{pretraining.stem}; head new"
        )
    backbone = {name: value for name, value in official.items() if not name.startswith("classifier.")}
    _load_backbone(model, backbone, str(file.path), config.name)
    return (
        f"backbone from {file.path}: {len(backbone)} entries; head new (a model made with psla convert knows its "
        "classes, and would give those in common)"
    )


def _load_backbone(model: AudioTagger, arrays: dict[str, np.ndarray], source: str, name: str) -> None:
    require_backbone(arrays, name, source)
    try:
        load_state_dict(model.backbone, arrays)
    except PretrainingError as error:
        raise PretrainingError(f"{source} is not for {name}: {error}") from error


def _from_model(
    model: AudioTagger,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
    frontend: FrontendConfig,
) -> str:
    """Fine-tuning: the backbone whole, and of the head the classes in common."""
    source = load_model(pretraining.source)
    known = source.card.model
    if not isinstance(source.network, AudioTagger) or (known.name, known.padding) != (config.name, config.padding):
        raise PretrainingError(
            f"{pretraining.source} is {known.name} with {known.padding} padding, the model to train {config.name} with "
            f"{config.padding}: use --model.name {known.name} --model.padding {known.padding}, or another source."
        )
    arrays = to_state_dict(source.network.backbone)
    _load_backbone(model, arrays, pretraining.source, config.name)
    taken = _take_classes(model.head, source.network.head, source.card, config, pretraining, vocabulary)
    note = _frontend_note(source.card.frontend, frontend)
    return f"backbone from {pretraining.source}: {len(arrays)} arrays, whole; {taken}{note}"


def _take_classes(
    head: Pooling,
    source: Pooling,
    card: ModelCard,
    config: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Vocabulary,
) -> str:
    """Fills the head's rows of the classes that the source knows, by mid; says so."""
    known = card.model
    if pretraining.head == "new":
        return f"head new for all {len(vocabulary)} classes, as asked"
    if known.pooling != config.pooling or (known.pooling == "attention" and known.heads != config.heads):
        return f"head new: the source has {known.pooling} pooling with {known.heads} heads"
    own = [index for index, mid in enumerate(vocabulary.mids) if mid in card.vocabulary]
    if not own:
        return f"head new: none of the {len(vocabulary)} classes is known there"
    theirs = [card.vocabulary.index(vocabulary.mids[index]) for index in own]
    variables = dict(nnx.to_flat_state(nnx.state(head, nnx.Param)))
    for path, given in nnx.to_flat_state(nnx.state(source, nnx.Param)):
        variable, value = variables[path], np.asarray(given[...])
        if path[-1] == "head_weight":
            variable.set_value(jnp.asarray(value))
            continue
        mixed = np.array(variable[...])
        mixed[..., own] = value[..., theirs]
        variable.set_value(jnp.asarray(mixed))
    new = [vocabulary.names[index] for index in range(len(vocabulary)) if index not in set(own)]
    shown = f" ({', '.join(new[:5])}{', ...' if len(new) > 5 else ''})" if new else ""
    return f"head: {len(own)} of {len(vocabulary)} classes taken over by mid, {len(new)} new{shown}"


def _frontend_note(theirs: FrontendConfig, ours: FrontendConfig) -> str:
    if (theirs.mean, theirs.std) == (ours.mean, ours.std):
        return ""
    return f"; it was trained with frontend.mean {theirs.mean} and frontend.std {theirs.std}, unlike this run"
