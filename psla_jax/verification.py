"""A test sound that every model can score: whether a model on disk still is the one that was saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.checkpoints import Model, ModelCard
from psla_jax.config import FrontendConfig
from psla_jax.frontend import SAMPLE_RATE, Frontend
from psla_jax.models.tagger import AudioTagger
from psla_jax.ontology import Vocabulary

SECONDS = 4.37
TOLERANCE = 2e-5
"""How far scores may be from those stored, or from PyTorch's: float32 elsewhere gives up to 1e-5."""


class VerificationError(ValueError):
    """A model that cannot be checked; the message names it."""


def sound_of_test() -> np.ndarray:
    """Two sweeps, a pulse train and fading noise, `(samples,)` at 16 kHz and mean-free; the same everywhere."""
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    up = np.sin(2 * math.pi * (120 * time + 400 * time**2))
    down = 0.5 * np.sin(2 * math.pi * (6000 * time - 500 * time**2)) * (time > SECONDS / 3)
    pulses = (time * 7 % 1 < 0.01).astype(float)
    noise = np.random.default_rng(0).uniform(-1, 1, time.size) * np.exp(-time)
    sound = 0.2 * up + 0.1 * down + 0.3 * pulses + 0.1 * noise
    return (sound - sound.mean()).astype(np.float32)


def spectrogram_of_test(config: FrontendConfig) -> np.ndarray:
    """The test sound as a model's input, `(1, frames, mels)`."""
    sound = sound_of_test()
    return np.asarray(Frontend.from_config(config)(sound[None], np.array([sound.size], np.int32)))


@jax.jit
def _call(module: nnx.Module, x: jax.Array) -> jax.Array:
    return module(x)


def golden_scores(network: nnx.Module, frontend: FrontendConfig) -> np.ndarray:
    """What a model, in evaluation view, scores on the test sound, `(classes,)`, in float32 at highest precision."""
    with jax.default_matmul_precision("highest"):
        x = jnp.asarray(spectrogram_of_test(frontend))
        # Backbone and head by themselves: models that share a backbone share its compiled program.
        parts = [network.backbone, network.head] if isinstance(network, AudioTagger) else [network]
        for part in parts:
            x = _call(part, x)
    return np.asarray(x[0], np.float32)


def golden(scores: np.ndarray, vocabulary: Vocabulary, **notes: Any) -> dict[str, Any]:
    """The entry of a :class:`ModelCard`: scores by mid, so that a changed order of classes shows too."""
    return {"scores": {mid: float(f"{score:.9g}") for mid, score in zip(vocabulary.mids, scores)}, **notes}


@dataclass(frozen=True)
class Check:
    """How far a model is from what it scored when it was saved.

    Attributes:
        largest: the largest difference of a score.
        mid: the class where it is.
        stored, found: its score then and now.
        classes: how many scores were compared.
    """

    largest: float
    mid: str
    stored: float
    found: float
    classes: int

    @property
    def verified(self) -> bool:
        return self.largest <= TOLERANCE

    def line(self) -> str:
        """The finding in one sentence."""
        if self.verified:
            return f"verified: {self.classes} scores of the test sound are within {self.largest:.1e} of those stored"
        return (
            f"differs: the test sound scores {self.found:.6f} for {self.mid}, and {self.stored:.6f} was stored "
            f"(largest of {self.classes} differences; {TOLERANCE:.0e} is allowed): this is not the model that was "
            "saved, so make it again"
        )


def check(model: Model, name: str) -> Check:
    """Scores the test sound again and compares.

    Raises:
        VerificationError: the model carries no scores, or of other classes.
    """
    stored = _stored(model.card, name)
    found = golden_scores(model.network, model.card.frontend)
    difference = np.abs(found - stored)
    worst = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
    largest = float(difference[worst]) if np.isfinite(difference[worst]) else math.inf
    return Check(largest, model.card.vocabulary.mids[worst], float(stored[worst]), float(found[worst]), len(found))


def _stored(card: ModelCard, name: str) -> np.ndarray:
    found: Mapping[str, Any] = card.golden
    if not found:
        raise VerificationError(
            f"{name} carries no scores of the test sound: converted and averaged models do, and a run's best "
            "and average."
        )
    try:
        return np.array([found["scores"][mid] for mid in card.vocabulary.mids], np.float32)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VerificationError(
            f"the stored scores of {name} do not fit its classes, so its model.json was changed: make the model again."
        ) from error
