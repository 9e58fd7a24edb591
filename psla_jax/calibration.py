"""Scores to probabilities and decisions: what ``psla calibrate`` fitted to a model, as it is kept and applied.

``calibration.json`` in a model directory has, for every class, the score from which on it counts as present and the
curve from scores to probabilities; what they were fitted on, and how well they did on clips that were held out. It
belongs to these weights and classes alone. Applying it takes NumPy and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.files import written_aside
from psla_jax.ontology import Vocabulary

FORMAT = 1
CALIBRATION = "calibration.json"
"""Its name in a model directory."""
FLOOR = 1e-6
"""Scores are taken to lie between this and one minus this where their log-odds are needed."""


class CalibrationError(ValueError):
    """A calibration that cannot be made or used; the message names the model or file."""


def log_odds(scores: np.ndarray) -> np.ndarray:
    """``log(s / (1 - s))`` in float64. Several heads can score below 0 or above 1: that is as good as 0 or 1."""
    inside = np.clip(np.asarray(scores, np.float64), FLOOR, 1 - FLOOR)
    return np.log(inside) - np.log1p(-inside)


@dataclass(frozen=True)
class Sigmoid:
    """Platt scaling: a line in the log-odds of the score."""

    slope: float
    intercept: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores of any shape, float64."""
        return np.exp(-np.logaddexp(0, -(self.slope * log_odds(scores) + self.intercept)))

    def to_json(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Isotonic:
    """A rising curve through points; beyond the first and the last one it is level."""

    scores: tuple[float, ...]
    """Ascending."""
    probabilities: tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores of any shape, float64."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)

    def to_json(self) -> dict[str, Any]:
        return {"scores": list(self.scores), "probabilities": list(self.probabilities)}


Curve = Sigmoid | Isotonic


def curve_from_json(values: Mapping[str, Any]) -> Curve:
    """Reads a curve back. Raises ValueError, KeyError or TypeError where it is none."""
    if "slope" in values:
        numbers = float(values["slope"]), float(values["intercept"])
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"a curve has slope and intercept {numbers}")
        return Sigmoid(*numbers)
    scores, probabilities = (tuple(map(float, values[name])) for name in ("scores", "probabilities"))
    if not scores or len(scores) != len(probabilities) or not np.isfinite([*scores, *probabilities]).all():
        raise ValueError(f"a curve has {len(scores)} scores and {len(probabilities)} probabilities")
    return Isotonic(scores, probabilities)


@dataclass(frozen=True)
class Decider:
    """From a score to a probability and a decision.

    Attributes:
        threshold: the score from which on a class is present; infinite if no threshold is as precise as was asked.
        curve: from scores to probabilities.
    """

    threshold: float
    curve: Curve

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: a threshold that does not exist is null."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "curve": self.curve.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decider:
        threshold = math.inf if values["threshold"] is None else float(values["threshold"])
        if math.isnan(threshold):
            raise ValueError("a threshold is NaN")
        return cls(threshold, curve_from_json(values["curve"]))


@dataclass(frozen=True)
class Deciders:
    """One for each class, in the order of the scores."""

    of_class: tuple[Decider, ...]

    @cached_property
    def thresholds(self) -> np.ndarray:
        """float64 `(classes,)`: the score from which on each class is present; infinity: it never is."""
        return np.array([decider.threshold for decider in self.of_class])

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of scores `(..., classes)`, float32 of the same shape."""
        columns = [decider.curve(scores[..., i]) for i, decider in enumerate(self.of_class)]
        return np.stack(columns, axis=-1).astype(np.float32)

    def present(self, scores: np.ndarray) -> np.ndarray:
        """Decisions on scores `(..., classes)`, bool of the same shape."""
        return scores >= self.thresholds


@dataclass(frozen=True)
class CalibratedClass:
    """What was fitted to a class.

    Attributes:
        mid: the class.
        positives: clips that have it.
        own: its own decider; None where there were too few positives, so that the shared one stands in.
        figures: how well it does, by what was judged; empty for a class without a positive.
    """

    mid: str
    positives: int
    own: Decider | None
    figures: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        fitted = {"shared": True} if self.own is None else {"shared": False, **self.own.to_json()}
        return {"mid": self.mid, "positives": self.positives, **fitted, "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CalibratedClass:
        own = None if values["shared"] else Decider.from_json(values)
        return cls(values["mid"], int(values["positives"]), own, values["figures"])


@dataclass(frozen=True)
class Calibration:
    """What was fitted to a model.

    Attributes:
        model: the fingerprint of the model, see ``checkpoints.fingerprint``.
        fitted: on what and how: datafile, its hash, clips, method, and how recordings were scored.
        figures: how well it does, before and after.
        shared: what stands in for classes with too few positives.
        classes: in the order of the model's scores.
    """

    model: str
    fitted: Mapping[str, Any]
    figures: Mapping[str, Any]
    shared: Decider
    classes: tuple[CalibratedClass, ...]

    def __deepcopy__(self, memo: Any) -> Calibration:
        """Nothing in it changes."""
        return self

    @cached_property
    def deciders(self) -> Deciders:
        """One for each class, its own or the shared one."""
        return Deciders(tuple(entry.own or self.shared for entry in self.classes))

    @property
    def event_thresholds(self) -> np.ndarray:
        """The thresholds for scores of steps, float64 `(classes,)`: those of whole clips, but above 0.

        Steps score otherwise than clips: a clip's score is a weighted mean of those of its steps, so that its highest
        step is above it as a rule. These thresholds are a beginning for events, and not fitted to them.
        """
        return np.maximum(self.deciders.thresholds, FLOOR)

    @property
    def sha256(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``calibration.json``."""
        sections = {
            "format": FORMAT,
            "model": self.model,
            "fitted": dict(self.fitted),
            "figures": dict(self.figures),
            "shared": self.shared.to_json(),
            "classes": [entry.to_json() for entry in self.classes],
        }
        return json.dumps(sections, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Reads the text back. Raises ValueError, KeyError or TypeError where it is not that."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, this version reads {FORMAT}")
        classes = tuple(CalibratedClass.from_json(entry) for entry in values["classes"])
        return cls(values["model"], values["fitted"], values["figures"], Decider.from_json(values["shared"]), classes)

    def write(self, directory: Path) -> Path:
        """Puts it into a model directory, whole or not at all; the path of the file."""
        with written_aside(directory / CALIBRATION) as file:
            file.write(self.to_json())
        return directory / CALIBRATION


def read(directory: Path, vocabulary: Vocabulary, fingerprint: Callable[[], str]) -> Calibration | None:
    """The calibration in a model directory; None if there is none.

    Args:
        directory: of the model.
        vocabulary: its classes.
        fingerprint: makes that of the model as it is now; called only if there is a calibration.

    Raises:
        CalibrationError: it cannot be read, or was fitted to other classes or other weights.
    """
    place, remedy = directory / CALIBRATION, "fit it again with psla calibrate --overwrite True, or delete it."
    if not place.exists():
        return None
    try:
        found = Calibration.from_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise CalibrationError(f"{place} cannot be read ({what}): {remedy}") from error
    if tuple(entry.mid for entry in found.classes) != vocabulary.mids:
        raise CalibrationError(f"{place} was fitted to other classes than those of the model: {remedy}")
    if found.model != fingerprint():
        raise CalibrationError(f"{place} was fitted to another model than the one it lies in: {remedy}")
    return found
