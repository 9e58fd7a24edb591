"""Mean and spread of a metric over several runs: the folds of a cross-validation, or the seeds of a setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over runs, and its sample standard deviation; NaN where undefined."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return _text(self.mean, self.std)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.std / math.sqrt(self.count) if self.count else math.nan

    def with_error(self) -> str:
        """Returns the mean and its standard error as text."""
        return _text(self.mean, self.error)

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Returns mean and standard deviation; the latter is NaN for a single value and for infinite ones."""
        count, finite = len(values), all(map(math.isfinite, values))
        mean = sum(values) / count if count else math.nan
        return cls(mean, statistics.stdev(values) if count > 1 and finite else math.nan, count)


def _text(mean: float, spread: float) -> str:
    return f"{mean:.4f}" if math.isnan(spread) else f"{mean:.4f} +- {spread:.4f}"
