"""A teacher in the training step (``distill.model``): it scores the augmented input of the student."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.data.teacher import TeacherError
from psla_jax.models.exclusive import normalise
from psla_jax.models.model_dir import CheckpointError, find_model, fingerprint, load_model, read_card
from psla_jax.models.state import split_model
from psla_jax.sampling.spectrogram import Batch
from psla_jax.training.distillation import soften
from psla_jax.vocabulary.vocabulary import Vocabulary

Weights = tuple[Any, ...]
"""Parameters and batch statistics of every member."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the teacher, in evaluation view."""

    graphdef: nnx.GraphDef
    frontend: Frontend
    columns: np.ndarray
    """Index of every class of the student among its own, -1 for none, ``(classes,)``."""
    exclusive: bool

    def scores(self, spectrograms: jax.Array, frontend: Frontend, weights: Any) -> jax.Array:
        """Returns the scores of the student's classes; those of classes that it lacks are of no use.

        `spectrograms` are normalised by `frontend`, that of the student, and are normalised again by its own.
        """
        own = self.frontend
        if (own.mean, own.std) != (frontend.mean, frontend.std):
            spectrograms = own.normalise(spectrograms * frontend.std + frontend.mean)
        scores = nnx.merge(self.graphdef, *weights)(spectrograms).astype(jnp.float32)
        return (normalise(scores) if self.exclusive else scores)[:, self.columns]


@dataclass(frozen=True, eq=False)
class OnlineTeacher:
    """One or several models, whose scores are averaged. Weights are arguments, so that no program contains them."""

    members: tuple[Member, ...]
    weights: Weights
    frontend: Frontend
    """Frontend of the student."""
    notes: tuple[str, ...]
    """Sentences on what differs between teacher and student."""

    @property
    def known(self) -> np.ndarray:
        """Classes of the student that a member has, bool ``(classes,)``."""
        return np.any([member.columns >= 0 for member in self.members], axis=0)

    def scores(self, spectrograms: jax.Array, weights: Weights) -> jax.Array:
        """Returns the mean score of the members that have a class, in [0, 1]; 0 if there is none."""
        scores = [
            jnp.where(member.columns >= 0, member.scores(spectrograms, self.frontend, own), 0.0)
            for member, own in zip(self.members, weights, strict=True)
        ]
        counts = np.sum([member.columns >= 0 for member in self.members], axis=0)
        # Those of attention heads may lie slightly outside [0, 1].
        return jnp.clip(sum(scores[1:], scores[0]) / np.maximum(counts, 1), 0.0, 1.0)

    def targets(self, batch: Batch, weights: Weights, temperature: float, *, exclusive: bool) -> jax.Array:
        """Returns softened scores of an augmented batch, with the labels of classes that the teacher lacks."""
        scores = soften(self.scores(batch["spectrogram"], weights), temperature, exclusive=exclusive)
        return jnp.where(self.known, scores, batch["labels"])


def load_teacher(
    paths: Sequence[str],
    frontend: Frontend,
    vocabulary: Vocabulary,
    *,
    exclusive: bool,
    trusted: Sequence[str],
    field: str,
) -> OnlineTeacher:
    """Loads the models of a teacher.

    Args:
        paths: model or run directories.
        frontend: that of the student.
        vocabulary: classes of the student.
        exclusive: whether every clip has exactly one class.
        trusted: import paths of the code that models may be built by, those of the student.
        field: name of the setting, for the messages of errors.

    Raises:
        TeacherError: a model cannot be loaded, has other spectrograms, or none of the classes (with exclusive classes,
            not all of them).
    """
    members, weights, notes = [], [], []
    for path in paths:
        try:
            card = read_card(find_model(Path(path)))
            if untrusted := sorted(set(card.model.custom_code) - set(trusted)):
                raise TeacherError(
                    f"{field}: {path} is a model of custom code, {', '.join(untrusted)}, which the student does not "
                    "use: score the clips with psla evaluate --trust --save, for distill.teacher."
                )
            model = load_model(path, trust=True)
        except CheckpointError as error:
            raise TeacherError(f"{field}: {error}") from error
        own = model.frontend
        _require_frontend(own, frontend, path, field)
        if own.target_length != frontend.target_length:
            notes.append(
                f"teacher {path}: scores {frontend.target_length} frames as the student does, and was trained on "
                f"{own.target_length}"
            )
        columns = np.array([card.vocabulary.indices.get(mid, -1) for mid in vocabulary.mids])
        notes += _class_notes(columns, vocabulary, path, field, exclusive)
        members.append(Member(nnx.graphdef(model.network), own, columns, card.exclusive))
        weights.append(jax.tree.map(np.asarray, split_model(model.network)))
    return OnlineTeacher(tuple(members), tuple(weights), frontend, tuple(notes))


def fingerprints(paths: Sequence[str], field: str) -> list[str]:
    """Returns the fingerprint of every model of a teacher; raises TeacherError if there is no such model."""
    try:
        directories = [find_model(Path(path)) for path in paths]
        return [fingerprint(directory, read_card(directory)) for directory in directories]
    except CheckpointError as error:
        raise TeacherError(f"{field}: {error}") from error


def _require_frontend(own: Frontend, student: Frontend, path: str, field: str) -> None:
    """Raises TeacherError unless a teacher's spectrograms differ only in length and normalisation."""
    own_fields = dataclasses.asdict(own)
    for name, value in dataclasses.asdict(student).items():
        if name not in ("target_length", "mean", "std") and own_fields[name] != value:
            raise TeacherError(
                f"{field} names {path}, which was trained with frontend.{name} {own_fields[name]} instead of {value}: "
                "score the clips with psla evaluate --save, and name the file with distill.teacher."
            )


def _class_notes(columns: np.ndarray, vocabulary: Vocabulary, path: str, field: str, exclusive: bool) -> list[str]:
    missing = np.flatnonzero(columns < 0)
    if not len(missing):
        return []
    example, count = vocabulary.mids[missing[0]], f"{len(missing)} of the {len(vocabulary)} classes"
    if exclusive or len(missing) == len(vocabulary):
        raise TeacherError(f"{field} names {path}, which lacks {count}, such as {example!r}: name a teacher of them.")
    return [f"teacher {path}: lacks {count}, for which labels stand in, such as {example}"]
