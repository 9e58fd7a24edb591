"""Selection of epochs: the best one, the last one with early stopping, and those of the weight average."""

from __future__ import annotations

import math
from collections.abc import Sequence

from psla_jax.config import AggregationConfig, OptimizerConfig, is_exclusive
from psla_jax.evaluation.tables import ACCURACY, EpochRow


def best_epoch(rows: Sequence[EpochRow], config: OptimizerConfig) -> int:
    """Returns the first epoch, counted from 1, with the highest accuracy (loss ``ce``) or mAP (``bce``).

    Small sets have ties in accuracy, which mAP breaks. Values are rounded as in ``result.csv``, so that a resumed run
    selects the same epoch.
    """
    names = (ACCURACY, "mAP") if is_exclusive(config.loss) else ("mAP",)
    merits = [tuple(float(f"{row.get(name, 0.0):.9g}") for name in names) for row in rows]
    return 1 + merits.index(max(merits))


def is_complete(rows: Sequence[EpochRow], config: OptimizerConfig) -> bool:
    """Returns whether training ends after these epochs: all are trained, or the best one is ``patience`` epochs old."""
    if len(rows) >= config.epochs:
        return True
    return bool(rows) and 0 < config.patience <= len(rows) - best_epoch(rows, config)


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
