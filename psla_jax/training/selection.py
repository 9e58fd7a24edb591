"""Selection of epochs: the best one, the last one with early stopping, and those of the weight average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from psla_jax.config import AggregationConfig, ConfigError, RunConfig, is_exclusive
from psla_jax.data.datasets import DataSets
from psla_jax.evaluation.evaluators import Evaluators
from psla_jax.evaluation.tables import ACCURACY, EpochRow

LOWER_IS_BETTER = ("valid_loss",)
SELECTING = ("mAP", "mAUC", "d_prime", "precision", "recall", *LOWER_IS_BETTER)
"""Columns of every ``result.csv`` that can select the best epoch."""


def selecting_columns(config: RunConfig) -> tuple[str, ...]:
    """Returns the columns by which the best epoch is selected; later ones decide between epochs with equal values."""
    first = config.select or (ACCURACY if is_exclusive(config.optimizer.loss) else "mAP")
    return (first,) if first == "mAP" else (first, "mAP")


def require_measurable(config: RunConfig, data: DataSets) -> None:
    """Raises an error unless ``metrics`` can be computed for these data, and ``select`` names a column or nothing."""
    evaluators = Evaluators.find(config.metrics, data.vocabulary, is_exclusive(data.loss))
    names = {kind: evaluators.require_defined(clips) for kind, clips in data.held_out.items()}
    single = [ACCURACY] if (np.diff(data.held_out[data.primary].label_offsets) == 1).all() else []
    choices = dict.fromkeys((*SELECTING, *single, *names[data.primary]))
    if config.select and config.select not in choices:
        raise ConfigError(f"select is {config.select!r}: choose one of {', '.join(choices)}, or add it to metrics.")


def best_epoch(rows: Sequence[EpochRow], config: RunConfig) -> int:
    """Returns the first epoch, counted from 1, with the best value of ``select``: accuracy or mAP by default.

    Small sets have ties in accuracy, which mAP breaks. Values are rounded as in ``result.csv``, so that a resumed run
    selects the same epoch.
    """
    merits = [tuple(_merit(row, name) for name in selecting_columns(config)) for row in rows]
    return 1 + merits.index(max(merits))


def _merit(row: EpochRow, name: str) -> float:
    value = float(f"{row.get(name, math.nan):.9g}")
    if math.isnan(value):
        return -math.inf
    return -value if name in LOWER_IS_BETTER else value


def is_complete(rows: Sequence[EpochRow], config: RunConfig) -> bool:
    """Returns whether training ends after these epochs: all are trained, or the best one is ``patience`` epochs old."""
    if len(rows) >= config.optimizer.epochs:
        return True
    return bool(rows) and 0 < config.optimizer.patience <= len(rows) - best_epoch(rows, config)


def averaged_epochs(config: AggregationConfig, epochs: int, trained: int) -> tuple[int, int]:
    """Returns the first and the last epoch of the weight average.

    They are those of the config; if training ended before the last of them, the same share of the epochs is averaged.

    Args:
        config: the epochs to average.
        epochs: number of epochs that were to be trained.
        trained: number of epochs that were trained.
    """
    last = config.last or epochs
    if last <= trained:
        return config.first, last
    first = 1 + (config.first - 1) * trained // epochs
    return first, max(first, math.ceil(last * trained / epochs))
