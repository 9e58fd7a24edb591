"""Scores to probabilities and decisions: calibrate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse


@dataclass(frozen=True)
class Calibrate:
    """Thresholds and probabilities for psla tag. Example: psla calibrate runs/demo --data demo:validation

    Fit them to clips that the model was not trained on. They are of whole clips like these: of a recording longer than
    a window the highest score counts, and the steps of an event have scores of their own."""

    model: Positional[tuple[str, ...]]
    """Model directory or run directory."""
    data: str
    """Datafile of validation clips."""
    method: Literal["sigmoid", "isotonic"] = "sigmoid"
    """From scores to probabilities: two numbers a class (Platt), or any rising curve, for hundreds of clips a class."""
    precision: float | None = None
    """The threshold of a class is the lowest one with this precision; without it, the one with the best F1."""
    min_positives: int = 10
    """Classes with fewer clips share a threshold and a curve."""
    folds: int = 5
    """Parts of the clips, each judged by what was fitted to the others."""
    policy: Literal["", "pad", "repeat", "mask"] = ""
    """As for psla tag: fit it as it will be used."""
    channel: Literal["mean", "first"] = "mean"
    """Which channel of a stereo file."""
    batch_size: int = 0
    """Windows computed together; 0 for what suits the device."""
    trust: bool = False
    """Import the Python code that a custom model names."""
    keep_scores: bool = True
    """Keep the scores, and take them from an earlier call where model and data have not changed since."""
    json: str = ""
    """Write everything, class by class, to this file too; - for the screen."""
    overwrite: bool = False
    """Replace a calibration that is there."""


def calibrate(arguments: list[str]) -> int:
    """psla calibrate MODEL --data VAL.json"""
    options = dataclasses.asdict(parse(Calibrate, arguments, "psla calibrate"))
    models = options.pop("model")
    if len(models) != 1:
        raise UsageError(
            f"psla calibrate takes one model, not {len(models)}: a calibration lies in the directory of its model, and "
            "an ensemble has none."
        )

    from psla_jax import calibrating

    calibrating.calibrate(calibrating.Request(models[0], **options))
    return 0
