"""The calibration of a model: per-class decision thresholds and curves from scores to probabilities.

``psla calibrate`` writes it as ``calibration.json`` into the model directory, together with the data and settings of
the fit and its metrics on held-out clips. It is valid only for the weights and classes that it was fitted to. Applying
a calibration requires only NumPy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.runtime.files import atomic_text
from psla_jax.vocabulary.vocabulary import Vocabulary

FORMAT = 1
"""Version of the file format."""
CALIBRATION = "calibration.json"
"""Name of the file in a model directory."""
FLOOR = 1e-6
"""Scores are clipped to [FLOOR, 1 - FLOOR] before their log-odds are computed."""


class CalibrationError(ValueError):
    """A calibration that cannot be fitted or used; the message names the model or file."""


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Returns ``log(s / (1 - s))`` in float64. Multi-head scores below 0 or above 1 are treated as 0 or 1."""
    clipped = np.clip(np.asarray(scores, np.float64), FLOOR, 1 - FLOOR)
    return np.log(clipped) - np.log1p(-clipped)


@dataclass(frozen=True)
class Sigmoid:
    """Platt scaling: a sigmoid of a linear function of the score's log-odds."""

    slope: float
    intercept: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Returns float64 probabilities for scores of any shape."""
        return np.exp(-np.logaddexp(0, -(self.slope * log_odds(scores) + self.intercept)))


@dataclass(frozen=True)
class Isotonic:
    """A monotonic piecewise-linear curve; constant below its first and above its last point."""

    scores: tuple[float, ...]
    """Scores of the points, ascending."""
    probabilities: tuple[float, ...]
    """Probabilities of the points."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Returns float64 probabilities for scores of any shape."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


Curve = Sigmoid | Isotonic


def curve_from_json(values: Mapping[str, Any]) -> Curve:
    """Parses the JSON of a curve. Raises ValueError, KeyError or TypeError if it is invalid."""
    if "slope" in values:
        line = float(values["slope"]), float(values["intercept"])
        if not all(map(math.isfinite, line)):
            raise ValueError(f"a curve has slope and intercept {line}")
        return Sigmoid(*line)
    scores, probabilities = (tuple(map(float, values[name])) for name in ("scores", "probabilities"))
    if not scores or len(scores) != len(probabilities) or not np.isfinite([*scores, *probabilities]).all():
        raise ValueError(f"a curve has {len(scores)} scores and {len(probabilities)} probabilities")
    return Isotonic(scores, probabilities)


@dataclass(frozen=True)
class Calibrator:
    """Decision threshold and probability curve of one class, or of a group of classes."""

    threshold: float
    """The class is present if its score reaches it; infinite if no threshold has the requested precision."""
    curve: Curve
    """Function from scores to probabilities."""

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON of the calibrator. JSON has no infinity: an infinite threshold becomes null."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        return {"threshold": threshold, "curve": dataclasses.asdict(self.curve)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibrator:
        threshold = math.inf if values["threshold"] is None else float(values["threshold"])
        if math.isnan(threshold):
            raise ValueError("a threshold is NaN")
        return cls(threshold, curve_from_json(values["curve"]))


@dataclass(frozen=True)
class CalibratorSet:
    """Calibrators of all classes, in the order of the scores."""

    shared: Calibrator
    """Calibrator of the classes that have none of their own."""
    own: tuple[Calibrator | None, ...]
    """Calibrator fitted to each class alone; None for a class that uses the shared one."""

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Decision thresholds, float64 `(classes,)`; infinite for classes that are never present."""
        return np.array([(calibrator or self.shared).threshold for calibrator in self.own])

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns the probabilities of scores `(..., classes)`, float32 of the same shape."""
        columns = [(calibrator or self.shared).curve(scores[..., i]) for i, calibrator in enumerate(self.own)]
        return np.stack(columns, axis=-1).astype(np.float32)

    def present(self, scores: np.ndarray) -> np.ndarray:
        """Returns the decisions for scores `(..., classes)`, bool of the same shape."""
        return scores >= self.thresholds


@dataclass(frozen=True)
class CalibratedClass:
    """Calibration of one class."""

    mid: str
    positives: int
    """Number of clips labelled with the class."""
    calibrator: Calibrator | None
    """Calibrator fitted to the class alone; None if the class uses the shared one."""
    metrics: Mapping[str, Any]
    """Metrics of the class, by set of scores; empty for a class without a positive clip."""

    def to_json(self) -> dict[str, Any]:
        fitted = {"shared": True} if self.calibrator is None else {"shared": False, **self.calibrator.to_json()}
        return {"mid": self.mid, "positives": self.positives, **fitted, "figures": dict(self.metrics)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CalibratedClass:
        calibrator = None if values["shared"] else Calibrator.from_json(values)
        return cls(values["mid"], int(values["positives"]), calibrator, values["figures"])


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model."""

    model: str
    """Fingerprint of the model, see ``model_dir.fingerprint``."""
    fitted: Mapping[str, Any]
    """Data and settings of the fit: datafile and its hash, number of clips, method, scoring options."""
    metrics: Mapping[str, Any]
    """Metrics over all classes, before and after calibration."""
    shared: Calibrator
    """Calibrator of the classes that have none of their own."""
    classes: tuple[CalibratedClass, ...]
    """Calibrations of the classes, in the order of the model's scores."""

    def __deepcopy__(self, memo: Any) -> Calibration:
        """Returns the calibration itself, which is immutable and large."""
        return self

    @cached_property
    def calibrators(self) -> CalibratorSet:
        return CalibratorSet(self.shared, tuple(entry.calibrator for entry in self.classes))

    @property
    def event_thresholds(self) -> np.ndarray:
        """Thresholds for scores of output frames, float64 `(classes,)`: the clip thresholds, but above 0.

        They are not fitted to events. A clip score is a weighted mean of its frame scores, so the highest frame score
        of a clip is usually above the clip score.
        """
        return np.maximum(self.calibrators.thresholds, FLOOR)

    @property
    def sha256(self) -> str:
        """SHA-256 of the JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the text of ``calibration.json``."""
        head = {"format": FORMAT, "model": self.model, "fitted": dict(self.fitted), "figures": dict(self.metrics)}
        body = {"shared": self.shared.to_json(), "classes": [entry.to_json() for entry in self.classes]}
        return json.dumps(head | body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Parses the text of ``calibration.json``. Raises ValueError, KeyError or TypeError if it is invalid."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, this version reads {FORMAT}")
        classes = tuple(map(CalibratedClass.from_json, values["classes"]))
        shared = Calibrator.from_json(values["shared"])
        return cls(values["model"], values["fitted"], values["figures"], shared, classes)

    def write(self, directory: Path) -> Path:
        """Writes the calibration into a model directory, atomically, and returns the path of the file."""
        with atomic_text(directory / CALIBRATION) as file:
            file.write(self.to_json())
        return directory / CALIBRATION

    @classmethod
    def read(cls, directory: Path, vocabulary: Vocabulary, fingerprint: Callable[[], str]) -> Calibration | None:
        """Reads the calibration in the directory of a model with these classes; None if there is none.

        `fingerprint` returns the fingerprint of the model; it is called only if the directory has a calibration.

        Raises:
            CalibrationError: the file is unreadable, or was fitted to other classes or another model.
        """
        path, remedy = directory / CALIBRATION, "fit it again with psla calibrate --overwrite, or delete it."
        if not path.exists():
            return None
        try:
            calibration = cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise CalibrationError(f"{path} cannot be read ({reason}): {remedy}") from error
        if tuple(entry.mid for entry in calibration.classes) != vocabulary.mids:
            raise CalibrationError(f"{path} was fitted to other classes than those of the model: {remedy}")
        if calibration.model != fingerprint():
            raise CalibrationError(
                f"{path} was fitted to another model, as its fingerprint does not match this directory: {remedy}"
            )
        return calibration
