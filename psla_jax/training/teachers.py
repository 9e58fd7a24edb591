"""The teacher of a run and the loss that imitates it, from the section ``distill`` of its config."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from psla_jax.audio.frontend import Frontend
from psla_jax.config import RunConfig, flatten, is_exclusive
from psla_jax.config_distill import DistillConfig
from psla_jax.data import taught, teacher
from psla_jax.data.datasets import DataSets
from psla_jax.data.segmented import cut
from psla_jax.data.taught import Card, TaughtScores
from psla_jax.data.teacher import TeacherError, TeacherScores
from psla_jax.runtime import distributed
from psla_jax.runtime.sharding import Placement
from psla_jax.training import losses
from psla_jax.training.distillation import distilled
from psla_jax.training.losses import Loss
from psla_jax.training.online_teacher import OnlineTeacher, fingerprints, load_teacher

MODEL_FIELD = "distill.model"
_FIELDS = ("seed", "data.batch_size", "data.channel", "optimizer.accumulate", "distill.segments")
_SECTIONS = ("sampling.", "frontend.")


def identity(config: DistillConfig) -> Mapping[str, Any]:
    """Returns hashes of the teacher, to detect whether it has changed when a run is resumed; empty without a teacher.

    Raises TeacherError if there is no such file or model.
    """
    if config.model:
        return {"models": fingerprints(config.model, MODEL_FIELD)}
    return taught.identity(Path(config.teacher)) if os.path.isdir(config.teacher) else teacher.identity(config)


def attached(data: DataSets, config: DistillConfig) -> DataSets:
    """Returns the data sets of a run with the segments of its training set, and the identity of its teacher.

    Raises TeacherError if there is no such teacher.
    """
    return replace(data, train=cut(data.train, config.segments), teacher=identity(config))


def online_teacher(config: RunConfig, data: DataSets) -> OnlineTeacher | None:
    """Loads the models of ``distill.model``, None if there are none; raises TeacherError if they cannot be used."""
    if not config.distill.model:
        return None
    frontend, exclusive = Frontend.from_config(config.frontend), is_exclusive(config.optimizer.loss)
    paths, own_code = config.distill.model, config.model.custom_code
    return load_teacher(paths, frontend, data.vocabulary, exclusive=exclusive, trusted=own_code, field=MODEL_FIELD)


def label_loss(config: RunConfig, data: DataSets) -> Loss:
    """Returns the loss of the labels of a run, with the class weights that its training set gives."""
    return losses.from_config(config.optimizer, _class_weights(config, data))


def run_loss(config: RunConfig, data: DataSets) -> Loss:
    """Returns the loss of the training steps of a run: that of the labels, or with a teacher, of both."""
    weights, exclusive = _class_weights(config, data), is_exclusive(config.optimizer.loss)
    loss = losses.from_config(config.optimizer, weights)
    if not config.distill.active:
        return loss
    return distilled(
        loss, config.distill, exclusive=exclusive, weights=None if weights is None else jnp.asarray(weights)
    )


def _class_weights(config: RunConfig, data: DataSets) -> np.ndarray | None:
    source, counts = config.optimizer.class_weights, data.train.class_counts()
    return losses.class_weights(source, counts, data.vocabulary) if source else None


def stored_scores(directory: Path, config: RunConfig, data: DataSets) -> TeacherScores | None:
    """Returns the scores of training clips in the file ``distill.teacher``; None if it is none.

    The primary process writes them to the run directory. Raises TeacherError if they cannot be used.
    """
    if not config.distill.teacher or os.path.isdir(config.distill.teacher):
        return None
    exclusive, sha256, target = is_exclusive(config.optimizer.loss), data.teacher["sha256"], directory / ".index"

    def prepare() -> str:
        arguments = config.distill, sha256, data.train, data.vocabulary
        return teacher.prepare(*arguments, exclusive=exclusive, directory=target).directory

    return TeacherScores(distributed.on_primary(prepare, TeacherError))


def taught_scores(config: RunConfig, data: DataSets, placement: Placement) -> TaughtScores | None:
    """Returns the scores of augmented rows in the directory ``distill.teacher``; None if it is none.

    Raises TeacherError unless they are those of exactly the rows of this training.
    """
    if not os.path.isdir(config.distill.teacher):
        return None
    if config.distill.consistency:
        raise TeacherError(
            f"distill.teacher is {config.distill.teacher!r}, with scores of one view of every clip, and "
            f"distill.consistency {config.distill.consistency} draws two: use distill.model, or a file of scores."
        )
    directory, epochs = Path(config.distill.teacher).absolute(), config.optimizer.epochs
    card = Card.read(directory)
    steps = epochs * math.ceil(len(data.train) / config.data.batch_size)
    taught.require_same_draws(directory, card, draws(config, data, placement), epochs, steps)
    return TaughtScores(str(directory), card, config.distill.temperature, is_exclusive(config.optimizer.loss))


def draws(config: RunConfig, data: DataSets, placement: Placement) -> Mapping[str, Any]:
    """Returns the settings that determine the augmented rows of a training, by name, as JSON has them."""
    settings = {k: v for k, v in flatten(config).items() if k in _FIELDS or k.startswith(_SECTIONS)}
    accumulate = config.optimizer.accumulate
    settings |= {
        "the training set": data.train.sha256,
        "its clips": len(data.train),
        "its classes": hashlib.sha256(json.dumps(data.vocabulary.mids).encode()).hexdigest(),
        "rows of a batch for the devices": placement.padded_size(config.data.batch_size, accumulate),
    }
    return json.loads(json.dumps(settings))


def notes(online: OnlineTeacher | None, stored: TeacherScores | None) -> list[str]:
    """Returns sentences on the teacher of a run, for the log."""
    return [*(online.notes if online else []), *(stored.notes() if stored else [])]
