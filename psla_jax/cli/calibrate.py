"""The command ``psla calibrate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.config import Channel


@dataclass(frozen=True)
class Calibrate:
    """Fit decision thresholds and probabilities for psla tag. Example: psla calibrate runs/demo --data demo:validation

    Use clips that the model was not trained on. The calibration applies to clip scores: for a recording longer than a
    window, to the highest window score. Events use the same thresholds, but they are not fitted to events."""

    model: Positional[tuple[str, ...]]
    """Model directory or run directory."""
    data: str
    """Datafile of validation clips."""
    method: Literal["sigmoid", "isotonic"] = "sigmoid"
    """Probability curve: sigmoid (Platt scaling), or isotonic, which needs hundreds of positive clips per class."""
    precision: float | None = None
    """Minimum precision, in (0, 1]: use the lowest threshold that reaches it. None: the threshold with the best F1."""
    min_positives: int = 10
    """Minimum number of positive clips for a class to get its own threshold and curve; the other classes share one."""
    folds: int = 5
    """Number of cross-fitting folds for the held-out metrics."""
    policy: Literal["", "pad", "repeat", "mask"] = ""
    """Treatment of clips shorter than a window: pad (default), repeat or mask. Use the same with psla tag."""
    channel: Channel | None = None
    """Channel of multi-channel files: the mean of all, or the first. Default: that of the training."""
    batch_size: int = 0
    """Number of windows computed together. 0: a number that suits the device."""
    trust: bool = False
    """Import the Python code that a custom model names."""
    keep_scores: bool = True
    """Cache the scores, and reuse them as long as neither the model nor the data changes."""
    json: str = ""
    """Also write the calibration, with the metrics of all classes, to this file; - writes it to standard output."""
    overwrite: bool = False
    """Replace an existing calibration."""


def calibrate(arguments: list[str]) -> int:
    """Runs ``psla calibrate MODEL --data VAL.json`` and returns its exit code."""
    options = dataclasses.asdict(parse(Calibrate, arguments, "psla calibrate"))
    models = options.pop("model")
    if len(models) != 1:
        raise UsageError(
            f"psla calibrate takes one model, not {len(models)}: a calibration belongs to one model directory, and an "
            "ensemble has none."
        )

    from psla_jax.tagging.calibration import run

    run.calibrate(run.Request(models[0], **options))
    return 0
