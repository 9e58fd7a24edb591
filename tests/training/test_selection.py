"""The best epoch, the end of training, and the epochs of the weight average."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psla_jax.config import AggregationConfig, DataConfig, OptimizerConfig, RunConfig
from psla_jax.training.selection import averaged_epochs, best_epoch, is_complete


def rows(*values: float, accuracy: tuple[float, ...] = ()) -> list[dict[str, float]]:
    made = [{"epoch": float(i), "mAP": value} for i, value in enumerate(values, 1)]
    for row, value in zip(made, accuracy):
        row["accuracy"] = value
    return made


def test_the_best_epoch_is_the_first_with_the_highest_map_or_accuracy():
    measured = rows(0.3, 0.5, 0.4, 0.5, accuracy=(0.7, 0.6, 0.7, 0.2))
    assert best_epoch(measured, RunConfig(optimizer=OptimizerConfig(loss="bce"))) == 2
    assert best_epoch(measured, RunConfig(optimizer=OptimizerConfig(loss="ce"))) == 3
    # A difference that the table does not show is a tie.
    assert best_epoch(rows(0.5, 0.5 + 1e-12), RunConfig(optimizer=OptimizerConfig(loss="bce"))) == 1


def test_any_column_selects_the_best_epoch():
    measured = rows(0.3, 0.5, 0.4, 0.5)
    for row, lwlrap, loss in zip(measured, (0.7, float("nan"), 0.7, 0.2), (0.3, 0.9, 0.2, 0.2)):
        row |= {"lwlrap": lwlrap, "valid_loss": loss}
    config = RunConfig(data=DataConfig(validation="v.json"), optimizer=OptimizerConfig(loss="ce"), select="mAP")
    assert best_epoch(measured, config) == 2
    assert best_epoch(measured, replace(config, select="lwlrap")) == 3, "mAP decides between equal values"
    assert best_epoch(measured, replace(config, select="valid_loss")) == 4, "the lowest loss, and mAP decides again"


@pytest.mark.parametrize(
    ("patience", "values", "complete"),
    [
        (0, (0.9, 0.1, 0.1, 0.1), False),
        (0, (0.9, 0.1, 0.1, 0.1, 0.1), True),
        (1, (), False),
        (1, (0.9,), False),
        (1, (0.1, 0.2, 0.3), False),
        (1, (0.1, 0.2, 0.2), True),
        (2, (0.1, 0.2, 0.2), False),
        (2, (0.1, 0.2, 0.1, 0.2), True),
        (2, (0.2, 0.1, 0.3, 0.1), False),
        (9, (0.9, 0.1, 0.1, 0.1, 0.1), True),
    ],
)
def test_training_ends_when_the_best_epoch_is_patience_epochs_old(patience, values, complete):
    optimizer = OptimizerConfig(epochs=5, patience=patience, loss="bce")
    config = RunConfig(
        data=DataConfig(validation="v.json"), optimizer=optimizer, aggregation=AggregationConfig(first=1)
    )
    assert is_complete(rows(*values), config) is complete


@pytest.mark.parametrize(
    ("first", "last", "trained", "expected"),
    [
        (16, 30, 30, (16, 30)),
        (16, 30, 29, (15, 29)),
        (16, 30, 12, (7, 12)),
        (16, 30, 1, (1, 1)),
        (30, 30, 12, (12, 12)),
        (1, 30, 5, (1, 5)),
        (5, 10, 10, (5, 10)),
        (5, 10, 9, (2, 3)),
    ],
)
def test_the_same_share_of_the_epochs_is_averaged(first, last, trained, expected):
    assert averaged_epochs(AggregationConfig(first, last), 30, trained) == expected
