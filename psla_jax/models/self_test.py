"""Self-test of saved models: the scores of a synthetic test sound, compared with those stored in ``model.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.config import FrontendConfig
from psla_jax.models.model_dir import Model, ModelCard
from psla_jax.models.protocols import parts
from psla_jax.vocabulary.vocabulary import Vocabulary

SECONDS = 4.37
"""Duration of the test sound."""
TOLERANCE = 2e-5
"""Largest allowed difference of a score from the stored one, or from PyTorch's; float32 rounding causes up to 1e-5."""


class VerificationError(ValueError):
    """A model without usable scores of the test sound; the message names it."""


def self_test_waveform(sample_rate: int = 16_000) -> np.ndarray:
    """Returns two sweeps, a pulse train and fading noise: zero-mean `(samples,)`, always the same at a sample rate."""
    time = np.arange(round(SECONDS * sample_rate)) / sample_rate
    up = np.sin(2 * math.pi * (120 * time + 400 * time**2))
    down = 0.5 * np.sin(2 * math.pi * (6000 * time - 500 * time**2)) * (time > SECONDS / 3)
    pulses = (time * 7 % 1 < 0.01).astype(float)
    noise = np.random.default_rng(0).uniform(-1, 1, time.size) * np.exp(-time)
    waveform = 0.2 * up + 0.1 * down + 0.3 * pulses + 0.1 * noise
    return (waveform - waveform.mean()).astype(np.float32)


def self_test_spectrogram(config: FrontendConfig) -> np.ndarray:
    """Returns the test sound as the input of a model, `(1, frames, mels)`."""
    waveform = self_test_waveform(config.sample_rate)
    return np.asarray(Frontend.from_config(config)(waveform[None], zero_mean=False))


@jax.jit
def _call(module: nnx.Module, x: jax.Array) -> jax.Array:
    return module(x)


def self_test_scores(network: nnx.Module, frontend: FrontendConfig) -> np.ndarray:
    """Returns a model's scores of the test sound, `(classes,)`, in float32 at the highest matmul precision.

    `network` is the model in its evaluation view.
    """
    with jax.default_matmul_precision("highest"):
        x = jnp.asarray(self_test_spectrogram(frontend))
        # Backbone and head are compiled separately: models with the same backbone share its compiled program.
        for part in parts(network) or [network]:
            x = _call(part, x)
    return np.asarray(x[0], np.float32)


def self_test_record(scores: np.ndarray, vocabulary: Vocabulary, **notes: Any) -> dict[str, Any]:
    """Returns the entry ``golden`` of a :class:`ModelCard`: scores by mid, which reveals a changed order of classes."""
    return {"scores": {mid: float(f"{score:.9g}") for mid, score in zip(vocabulary.mids, scores)}, **notes}


@dataclass(frozen=True)
class SelfTestResult:
    """Difference of a model's scores of the test sound from the stored ones.

    Attributes:
        max_difference: largest absolute difference of a score; infinite if a score is not finite.
        mid: class with that difference.
        stored, computed: its stored and its computed score.
        num_scores: number of compared scores.
    """

    max_difference: float
    mid: str
    stored: float
    computed: float
    num_scores: int

    @property
    def verified(self) -> bool:
        """Whether all differences are within the tolerance."""
        return self.max_difference <= TOLERANCE

    def summary(self) -> str:
        """Returns the result as one sentence."""
        if self.verified:
            return (
                f"verified: {self.num_scores} scores of the test sound differ by at most {self.max_difference:.1e} "
                "from the stored ones"
            )
        return (
            f"differs: the test sound scores {self.computed:.6f} for {self.mid}, but {self.stored:.6f} was stored "
            f"(largest of {self.num_scores} differences; {TOLERANCE:.0e} is allowed): the model has changed since it "
            "was saved, so create it again"
        )


def run_self_test(model: Model, name: str) -> SelfTestResult:
    """Scores the test sound and compares the scores with the stored ones. Errors call the model `name`.

    Raises:
        VerificationError: if the model has no stored scores, or they are of other classes.
    """
    stored = _stored_scores(model.card, name)
    computed = self_test_scores(model.network, model.card.frontend)
    difference = np.abs(computed - stored)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    worst = int(np.argmax(difference))
    mid = model.card.vocabulary.mids[worst]
    return SelfTestResult(float(difference[worst]), mid, float(stored[worst]), float(computed[worst]), len(computed))


def _stored_scores(card: ModelCard, name: str) -> np.ndarray:
    if not card.golden:
        raise VerificationError(
            f"{name} carries no scores of the test sound: only converted and averaged models, and the best and the "
            "average model of a run do."
        )
    try:
        return np.array([card.golden["scores"][mid] for mid in card.vocabulary.mids], np.float32)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VerificationError(
            f"the stored scores of {name} do not fit its classes, so model.json was changed: create the model again."
        ) from error
